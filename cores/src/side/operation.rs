//! One operation for the kernel, with everything it touches.
//!
//! Invariant: whatever the entry points at is owned by the `Operation`, and stays in place when the
//! `Operation` moves. So whoever keeps the operation until its completion keeps the kernel's memory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, squeue, types};

use super::Fd;
use super::message::Message;
use super::slices::{Excerpt, Slices};
use crate::buffer::Buffer;

/// What the kernel is asked for.
pub(super) enum Kind {
    Read { offset: u64, buffer: Buffer },
    Write { offset: u64, buffer: Buffer },
    Fsync { data_only: bool },
    Fallocate { mode: i32, offset: u64, len: u64 },
    Readable,
    Receive(Message),
    Send { buffer: Buffer, from: usize },
    SendSlices(Slices),
}

/// A request to the kernel about one descriptor.
pub(super) struct Operation {
    pub(super) fd: Fd,
    pub(super) kind: Kind,
}

impl Operation {
    /// The entry for the submission queue. What it points at belongs to `self`.
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.fd.as_raw_fd());
        match &mut self.kind {
            Kind::Read { offset, buffer } => {
                opcode::Read::new(fd, buffer.as_kernel_pointer(), buffer.kernel_len()).offset(*offset).build()
            }
            Kind::Write { offset, buffer } => {
                opcode::Write::new(fd, buffer.as_kernel_pointer(), buffer.kernel_len()).offset(*offset).build()
            }
            Kind::Fsync { data_only: true } => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Kind::Fsync { data_only: false } => opcode::Fsync::new(fd).build(),
            Kind::Fallocate { mode, offset, len } => {
                opcode::Fallocate::new(fd, *len).mode(*mode).offset(*offset).build()
            }
            Kind::Readable => opcode::PollAdd::new(fd, libc::POLLIN.cast_unsigned().into()).build(),
            Kind::Receive(message) => opcode::RecvMsg::new(fd, message.as_kernel_pointer())
                .flags(libc::MSG_CMSG_CLOEXEC.cast_unsigned())
                .build(),
            Kind::Send { buffer, from } => {
                let start = (*from).min(buffer.len());
                let len = u32::try_from(buffer.len() - start).expect("BUFFER_BYTES_MAX is below 4 GiB");
                // SAFETY: `start` is at most the length of the buffer, so the sum stays inside the
                // allocation or points just past it.
                let first = unsafe { buffer.as_kernel_pointer().add(start) };
                opcode::Send::new(fd, first, len).flags(libc::MSG_NOSIGNAL).build()
            }
            Kind::SendSlices(slices) => {
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                opcode::SendMsg::new(fd, slices.as_kernel_pointer()).flags(flags.cast_unsigned()).build()
            }
        }
    }

    /// Lets go of a completed operation whose result nobody wants: what it brought is closed.
    pub(super) fn abandon(mut self, result: i32) {
        if let Kind::Receive(message) = &mut self.kind
            && result >= 0
        {
            // An error here says that some descriptors did not arrive; the others are closed.
            drop(message.take_descriptors());
        }
    }

    /// The buffer of an operation that is done.
    pub(super) fn into_buffer(self) -> Buffer {
        match self.kind {
            Kind::Read { buffer, .. } | Kind::Write { buffer, .. } | Kind::Send { buffer, .. } => buffer,
            Kind::Receive(message) => message.into_buffer(),
            Kind::Fsync { .. } | Kind::Fallocate { .. } | Kind::Readable | Kind::SendSlices(_) => {
                unreachable!("only operations that have a buffer are asked for it")
            }
        }
    }

    /// What was sent by a send that is done.
    pub(super) fn into_excerpts(self) -> Vec<Excerpt> {
        match self.kind {
            Kind::SendSlices(slices) => slices.into_excerpts(),
            Kind::Read { .. }
            | Kind::Write { .. }
            | Kind::Fsync { .. }
            | Kind::Fallocate { .. }
            | Kind::Readable
            | Kind::Receive(_)
            | Kind::Send { .. } => unreachable!("only a send of slices is asked for them"),
        }
    }

    /// The bytes, descriptors and buffer of a receive that is done.
    pub(super) fn received(mut self, result: io::Result<usize>) -> (io::Result<(usize, Vec<OwnedFd>)>, Buffer) {
        let result = result.and_then(|len| match &mut self.kind {
            Kind::Receive(message) => message.take_descriptors().map(|descriptors| (len, descriptors)),
            Kind::Read { .. }
            | Kind::Write { .. }
            | Kind::Fsync { .. }
            | Kind::Fallocate { .. }
            | Kind::Readable
            | Kind::Send { .. }
            | Kind::SendSlices(_) => unreachable!("only a receive is asked for what was received"),
        });
        (result, self.into_buffer())
    }
}

/// The kernel's result as ours: what is below zero is an errno.
pub(super) fn count(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
