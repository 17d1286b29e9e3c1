//! The side ring against the kernel: files, pipes, sockets, and futures dropped half-way.

use std::fs::{File, OpenOptions};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice, Read, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use cores::executor::{self, CoreSpec};
use cores::limits::{DESCRIPTORS_MAX, SIDE_OPERATIONS_MAX, SLICES_MAX};
use cores::rt;
use cores::side::{Buffer, Excerpt, Fd, Side};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Bytes of one write in these tests: what every block device and file system takes with O_DIRECT.
const BLOCK: usize = 4096;

fn on_a_core<T: Send + 'static, F: Future<Output = T> + 'static>(body: impl FnOnce() -> F + Send + 'static) -> T {
    let core = CoreSpec { name: "side".to_owned(), cpu: None };
    executor::start(core, body).expect("an executor starts").join().expect("the main future does not panic")
}

fn shared(fd: impl Into<OwnedFd>) -> Fd {
    Rc::new(fd.into())
}

/// Polls `future` once, which queues its operation, and expects that it has to wait.
async fn begin<F: Future>(mut future: Pin<&mut F>) {
    poll_fn(|context| {
        assert!(future.as_mut().poll(context).is_pending(), "an operation that waits");
        Poll::Ready(())
    })
    .await;
    // The operation goes to the kernel at the end of this turn.
    rt::yield_now().await;
}

/// Lets the core run until the kernel has given back every operation.
async fn all_given_back(side: &Rc<Side>) {
    while side.in_flight() > 0 {
        rt::sleep(Duration::from_millis(1)).await;
    }
}

/// A byte that depends on where it is.
fn pattern(at: usize) -> u8 {
    u8::try_from(at % 251).expect("it is below 251")
}

fn block(index: usize) -> Buffer {
    let mut buffer = Buffer::aligned(BLOCK, BLOCK);
    buffer.iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(at * 7 + index * 31));
    buffer
}

async fn write_a_batch_and_read_it_back(file: File) {
    let (side, file) = (rt::side(), shared(file));
    let offset = |index: usize| (index * 2 * BLOCK) as u64;
    side.fallocate(&file, 0, 0, offset(50)).await.expect("a file takes space");
    let writes = (0..50).map(|index| (file.clone(), offset(index), block(index))).collect();
    for result in side.write_batch(writes).await {
        assert_eq!(result.expect("a file takes a write"), BLOCK);
    }
    side.fsync(&file, true).await.expect("a file is flushed");
    side.fsync(&file, false).await.expect("a file is flushed");
    for index in 0..50 {
        let (result, bytes) = side.read(&file, offset(index), Buffer::aligned(BLOCK, BLOCK)).await;
        assert_eq!(result.expect("a file gives what it has"), BLOCK);
        assert_eq!(&bytes[..], &block(index)[..], "block {index}");
    }
    let (result, _) = side.write(&file, offset(60), block(1)).await;
    assert_eq!(result.expect("a file takes a write past its end"), BLOCK);
    let (result, _) = side.read(&file, offset(70), Buffer::aligned(BLOCK, BLOCK)).await;
    assert_eq!(result.expect("past the end there is nothing"), 0);
    assert_eq!(side.in_flight(), 0);
}

#[test]
fn a_batch_is_written_flushed_and_read_back() {
    on_a_core(|| async { write_a_batch_and_read_it_back(tempfile::tempfile().expect("a file")).await });
}

#[test]
fn a_batch_is_written_past_the_page_cache_and_read_back() {
    on_a_core(|| async {
        // Not under /tmp, which may be a tmpfs that knows no O_DIRECT.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).custom_flags(libc::O_DIRECT);
        let file = options.open(folder.path().join("direct")).expect("a file opened with O_DIRECT");
        write_a_batch_and_read_it_back(file).await;
    });
}

#[test]
fn a_batch_larger_than_the_slab_is_written_whole() {
    on_a_core(|| async {
        let (side, file) = (rt::side(), shared(tempfile::tempfile().expect("a file")));
        let count = SIDE_OPERATIONS_MAX * 2 + 100;
        let write = |index: usize| (file.clone(), index as u64, Buffer::from(vec![pattern(index)]));
        let results = side.write_batch((0..count).map(write).collect()).await;
        assert!(results.into_iter().all(|result| result.is_ok_and(|written| written == 1)));
        let (result, bytes) = side.read(&file, 0, Buffer::aligned(count, 1)).await;
        assert_eq!(result.expect("a file gives what it has"), count);
        assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == pattern(index)));
        assert!(side.write_batch(Vec::new()).await.is_empty());
    });
}

#[test]
fn errors_of_the_kernel_come_back_with_the_buffer() {
    on_a_core(|| async {
        let (side, file) = (rt::side(), shared(File::open("/proc/self/status").expect("a file to read")));
        let (result, buffer) = side.write(&file, 0, Buffer::from(vec![1, 2, 3])).await;
        assert_eq!(result.expect_err("it was opened for reading").raw_os_error(), Some(libc::EBADF));
        assert_eq!(&buffer[..], [1, 2, 3]);
        let error = side.fallocate(&file, 0, 0, 10).await.expect_err("it was opened for reading");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn a_dropped_read_gives_back_its_slot_and_never_writes_into_freed_memory() {
    on_a_core(|| async {
        let side = rt::side();
        for round in 0..100u8 {
            let (pipe, mut writer) = io::pipe().expect("a pipe");
            let pipe = shared(pipe);
            {
                let mut read = pin!(side.read(&pipe, u64::MAX, Buffer::aligned(64, 1)));
                begin(read.as_mut()).await;
                assert_eq!(side.in_flight(), 1);
            }
            // The allocator likes to give this what was freed last; the kernel must not touch it.
            let innocent = Buffer::from(vec![round; 64]);
            writer.write_all(&[0xff; 64]).expect("a pipe takes 64 bytes");
            all_given_back(&side).await;
            assert!(innocent.iter().all(|byte| *byte == round), "the kernel wrote into freed memory");
            assert_eq!(Rc::strong_count(&pipe), 1, "the slot has let go of the descriptor");
        }
    });
}

#[test]
fn an_operation_in_flight_keeps_its_descriptor_open() {
    on_a_core(|| async {
        let side = rt::side();
        let (pipe, mut writer) = io::pipe().expect("a pipe");
        let pipe = shared(pipe);
        {
            let mut wait = pin!(side.readable(&pipe));
            begin(wait.as_mut()).await;
        }
        drop(pipe);
        all_given_back(&side).await;
        // The other end is asked whether it is closed, because its number may be that of another test's by now. The
        // kernel may let go of it after it has said that the operation is done.
        let closed = loop {
            match writer.write_all(&[0]) {
                Ok(()) => rt::sleep(Duration::from_millis(1)).await,
                Err(error) => break error.kind(),
            }
        };
        assert_eq!(closed, io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn thousands_of_dropped_waits_leave_nothing_behind() {
    on_a_core(|| async {
        let side = rt::side();
        let (pipe, _writer) = io::pipe().expect("a pipe");
        let pipe = shared(pipe);
        for _ in 0..5 {
            let waits: Vec<_> = (0..SIDE_OPERATIONS_MAX + 50)
                .map(|_| {
                    let (side, pipe) = (side.clone(), pipe.clone());
                    Box::pin(async move { side.readable(&pipe).await })
                })
                .collect();
            let mut waits = waits;
            for wait in &mut waits {
                begin(wait.as_mut()).await;
            }
            assert_eq!(side.in_flight(), SIDE_OPERATIONS_MAX);
            drop(waits);
            all_given_back(&side).await;
        }
        assert_eq!(Rc::strong_count(&pipe), 1);
    });
}

#[test]
fn readable_waits_for_bytes_or_for_the_end() {
    on_a_core(|| async {
        let side = rt::side();
        let (mut mine, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let watched = shared(mine.try_clone().expect("a second descriptor"));
        let wait = || {
            let (side, watched) = (side.clone(), watched.clone());
            rt::spawn("wait", async move { side.readable(&watched).await })
        };
        let first = wait();
        rt::sleep(Duration::from_millis(5)).await;
        assert!(!first.is_finished(), "there is nothing to read yet");
        theirs.write_all(b"x").expect("a socket takes a byte");
        first.await.expect("no panic").expect("the socket can be polled");
        mine.read_exact(&mut [0]).expect("the byte is there");
        let second = wait();
        rt::sleep(Duration::from_millis(5)).await;
        assert!(!second.is_finished(), "it was read");
        drop(theirs);
        second.await.expect("no panic").expect("an end can be read");
    });
}

/// Sends `bytes` with copies of a descriptor, as a D-Bus client would.
fn send_descriptors(socket: &UnixStream, bytes: &[u8], fd: &impl AsRawFd, count: usize) {
    let descriptors = vec![fd.as_raw_fd(); count];
    let control = [ControlMessage::ScmRights(&descriptors)];
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None);
    assert_eq!(sent, Ok(bytes.len()));
}

#[test]
fn a_message_arrives_with_its_descriptors() {
    on_a_core(|| async {
        let side = rt::side();
        let (mine, theirs) = UnixStream::pair().expect("a pair of sockets");
        let mine = shared(mine);
        let (pipe, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(b"key").expect("a pipe takes three bytes");
        send_descriptors(&theirs, b"hello", &pipe, DESCRIPTORS_MAX);
        drop((pipe, writer));
        let (result, buffer) = side.receive(&mine, Buffer::aligned(100, 8)).await;
        let (len, mut descriptors) = result.expect("a message has come");
        assert_eq!((&buffer[..len], descriptors.len()), (&b"hello"[..], DESCRIPTORS_MAX));
        let flags = nix::fcntl::fcntl(&descriptors[3], nix::fcntl::FcntlArg::F_GETFD).expect("it is open");
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        let mut text = String::new();
        let mut first = File::from(descriptors.swap_remove(0));
        first.read_to_string(&mut text).expect("the writer is closed");
        assert_eq!(text, "key");
        let (result, _) = side
            .receive(&mine, {
                drop(theirs);
                buffer
            })
            .await;
        let (len, descriptors) = result.expect("the end has come");
        assert_eq!((len, descriptors.len()), (0, 0));
    });
}

/// True once every reader of the pipe is closed.
fn readers_are_gone(writer: &mut io::PipeWriter) -> bool {
    writer.write(b"x").is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[test]
fn too_many_descriptors_are_an_error_and_none_stays_open() {
    on_a_core(|| async {
        let side = rt::side();
        let (mine, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (pipe, mut writer) = io::pipe().expect("a pipe");
        send_descriptors(&theirs, b"hello", &pipe, DESCRIPTORS_MAX + 1);
        drop(pipe);
        let (result, _) = side.receive(&shared(mine), Buffer::aligned(100, 8)).await;
        assert_eq!(result.expect_err("17 are too many").kind(), io::ErrorKind::InvalidData);
        assert!(readers_are_gone(&mut writer));
    });
}

#[test]
fn descriptors_of_a_message_that_nobody_fetches_are_closed() {
    on_a_core(|| async {
        let side = rt::side();
        let (mine, theirs) = UnixStream::pair().expect("a pair of sockets");
        let (pipe, mut writer) = io::pipe().expect("a pipe");
        let mine = shared(mine);
        {
            let mut receive = pin!(side.receive(&mine, Buffer::aligned(100, 8)));
            begin(receive.as_mut()).await;
            send_descriptors(&theirs, b"hello", &pipe, 2);
            // The message completes while nobody polls the future.
            rt::sleep(Duration::from_millis(5)).await;
        }
        all_given_back(&side).await;
        drop(pipe);
        drop((mine, theirs));
        assert!(readers_are_gone(&mut writer));
    });
}

#[test]
fn a_large_send_goes_out_in_parts_and_a_closed_peer_is_an_error() {
    on_a_core(|| async {
        let side = rt::side();
        let (mine, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mine = shared(mine);
        let bytes: Vec<u8> = (0..1_000_000).map(pattern).collect();
        let expected = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; expected.len()];
            theirs.read_exact(&mut got).expect("all of it arrives");
            got == expected
        });
        let (mut from, mut buffer) = (0, Buffer::from(bytes));
        while from < buffer.len() {
            let (result, back) = side.send(&mine, buffer, from).await;
            from += result.expect("the peer reads");
            buffer = back;
        }
        assert!(reader.join().expect("the reader does not panic"));
        let (result, _) = side.send(&mine, buffer, 0).await;
        assert_eq!(result.expect_err("the peer is gone").kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn slices_of_shared_bytes_go_out_in_their_order_and_come_back() {
    on_a_core(|| async {
        let side = rt::side();
        let (mine, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mine = shared(mine);
        let bytes: Rc<[u8]> = (0..1_000).map(pattern).collect();
        // Overlapping, empty and whole ones, more than the socket holds at a time.
        let ranges = (0..SLICES_MAX).map(|index| u32::try_from(index % 500).expect("below 500"));
        let mut slices: Vec<_> = ranges.map(|at| at..2 * at).collect();
        slices[0] = 0..1_000;
        let excerpt = |(cut, parts): (u32, &[Range<u32>])| Excerpt::new(&bytes, &parts.into(), cut);
        // The first ends before its last byte.
        let mut excerpts: Vec<_> = [1, 0, 0, 0].into_iter().zip(slices.chunks(SLICES_MAX / 4)).map(excerpt).collect();
        let expected = excerpts.iter().flat_map(Excerpt::slices).flatten().copied().collect::<Vec<u8>>();
        assert_eq!(expected.len(), slices.iter().map(Range::len).sum::<usize>() - 1);
        let copy = expected.clone();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; copy.len()];
            theirs.read_exact(&mut got).expect("all of it arrives");
            got == copy
        });
        // From the middle of a slice on, as after a send that was cut short.
        let (result, _) = side.send(&mine, Buffer::from(expected[..700].to_vec()), 0).await;
        let mut from = result.expect("the peer reads");
        while from < expected.len() {
            let (result, back) = side.send_slices(&mine, excerpts, from).await;
            from += result.expect("the peer reads");
            excerpts = back;
        }
        assert!(reader.join().expect("the reader does not panic"));
        let (result, excerpts) = side.send_slices(&mine, excerpts, 0).await;
        assert_eq!(result.expect_err("the peer is gone").kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(Rc::strong_count(&bytes), 1 + excerpts.len(), "the kernel's list is gone");
    });
}

#[test]
fn a_dropped_send_keeps_its_slices_until_the_kernel_is_done() {
    on_a_core(|| async {
        let side = rt::side();
        let (mine, _theirs) = UnixStream::pair().expect("a pair of sockets");
        let mine = shared(mine);
        let bytes: Rc<[u8]> = vec![7; 10_000_000].into();
        {
            let whole = Excerpt::new(&bytes, &std::iter::once(0..10_000_000).collect(), 0);
            let mut send = pin!(side.send_slices(&mine, vec![whole], 0));
            begin(send.as_mut()).await;
        }
        all_given_back(&side).await;
        assert_eq!((Rc::strong_count(&bytes), Rc::strong_count(&mine)), (1, 1));
    });
}

#[test]
fn a_universe_has_no_side_ring() {
    let universe = cores::deterministic::Universe::new(1);
    let fault = universe.run(async { rt::spawn("lost", async { rt::side() }).await.err() }).finished();
    assert_eq!(fault.expect("it is our bug to ask").task, "lost");
}
