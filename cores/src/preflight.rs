//! What must hold before any executor starts: io_uring with every opcode we use, enough memory that
//! may be locked, enough open files.
//!
//! glommio panics where io_uring is refused and fails half-way where memory cannot be locked, so
//! both are tried here first. Invariant: after `check` is Ok, executors for these needs can start
//! as far as io_uring and locked memory go; and a fault always names what to change, and where.
//!
//! Deliberately absent: anything about device-mapper or the bus (their owners find out themselves),
//! and repair: resource limits are raised as far as this process may, nothing else is touched.

use std::fmt;
use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use thiserror::Error;

/// glommio's own floor for RLIMIT_MEMLOCK; it looks at the limit only, so this holds for root too.
pub const LOCKED_BYTES_MIN: u64 = 512 << 10;

/// An executor registers its buffer with each of its three rings, and each registration counts.
pub const RINGS_PER_EXECUTOR: u64 = 3;

/// glommio gives each executor at least this much buffer, whatever it is asked for.
pub const IO_MEMORY_BYTES_MIN: u64 = 64 << 10;

/// Entries of the trial ring: the smallest that is useful. It is closed again at once.
const TRIAL_ENTRIES: u32 = 2;

/// Where the kernel says who may use io_uring: 0 everybody, 1 the group of
/// `kernel.io_uring_group` and CAP_SYS_ADMIN, 2 nobody.
const SYSCTL: &str = "/proc/sys/kernel/io_uring_disabled";

/// Bit of CAP_IPC_LOCK in a capability mask: its holder may lock memory beyond the limit.
const CAP_IPC_LOCK: u32 = 14;

/// Every opcode that the side ring or glommio submits. The newest of them came with Linux 5.6.
const OPCODES: &[(&str, u8)] = &[
    ("NOP", opcode::Nop::CODE),
    ("READV", opcode::Readv::CODE),
    ("WRITEV", opcode::Writev::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("POLL_REMOVE", opcode::PollRemove::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("RECVMSG", opcode::RecvMsg::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
    ("TIMEOUT_REMOVE", opcode::TimeoutRemove::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("LINK_TIMEOUT", opcode::LinkTimeout::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("OPENAT", opcode::OpenAt::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("STATX", opcode::Statx::CODE),
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
];

/// What is going to be started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Needs {
    /// How many executors.
    pub executors: usize,
    /// The `io_memory` of each, in bytes.
    pub io_memory_bytes: usize,
}

/// What this process cannot have, and how it could.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PreflightFault {
    /// The kernel was built without io_uring, or is too old.
    #[error(
        "this kernel has no io_uring (or a filter hides it): Linux 5.8 or newer with CONFIG_IO_URING is needed, \
         and in a container a seccomp profile that allows io_uring_setup, io_uring_enter and io_uring_register"
    )]
    RingAbsent,
    /// An administrator has switched io_uring off.
    #[error(
        "io_uring is switched off: kernel.io_uring_disabled is {setting}; allow it: sysctl kernel.io_uring_disabled=0"
    )]
    RingSwitchedOff {
        /// The value of the sysctl.
        setting: u32,
    },
    /// It is not the sysctl.
    #[error(
        "io_uring is refused (EPERM) although kernel.io_uring_disabled does not forbid it: probably a seccomp filter; \
         let the container or unit allow io_uring_setup, io_uring_enter and io_uring_register"
    )]
    RingFiltered,
    /// Another reason.
    #[error("cannot make an io_uring: {0}")]
    Ring(Errno),
    /// The kernel's io_uring is too old.
    #[error("io_uring of this kernel lacks {}: Linux 5.8 or newer is needed", .0.join(", "))]
    Opcodes(Vec<&'static str>),
    /// RLIMIT_MEMLOCK.
    #[error(
        "{need} KiB of memory must be lockable, {have} KiB are: LimitMEMLOCK=64M in the service unit, \
         or ulimit -l {need} in the shell that starts it",
        need = need.div_ceil(1024), have = have >> 10
    )]
    LockedMemory {
        /// Bytes needed.
        need: u64,
        /// Bytes allowed.
        have: u64,
    },
    /// RLIMIT_NOFILE.
    #[error(
        "{need} open files are needed, {have} are allowed: LimitNOFILE={need} in the service unit, \
         or ulimit -n {need} in the shell that starts it"
    )]
    OpenFiles {
        /// Descriptors needed.
        need: u64,
        /// Descriptors allowed.
        have: u64,
    },
    /// The kernel did not tell or take a limit.
    #[error("cannot read or set the limit of {0}: {1}")]
    Limit(Limit, Errno),
}

/// Which resource limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// RLIMIT_MEMLOCK, in bytes.
    LockedMemory,
    /// RLIMIT_NOFILE, a count.
    OpenFiles,
}

impl fmt::Display for Limit {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::LockedMemory => "locked memory",
            Self::OpenFiles => "open files",
        })
    }
}

impl Limit {
    const fn resource(self) -> Resource {
        match self {
            Self::LockedMemory => Resource::RLIMIT_MEMLOCK,
            Self::OpenFiles => Resource::RLIMIT_NOFILE,
        }
    }

    const fn too_low(self, need: u64, have: u64) -> PreflightFault {
        match self {
            Self::LockedMemory => PreflightFault::LockedMemory { need, have },
            Self::OpenFiles => PreflightFault::OpenFiles { need, have },
        }
    }
}

/// Tries what executors need. Raises the limit of locked memory as far as it may.
///
/// # Errors
/// The first thing that cannot be had.
pub fn check(needs: &Needs) -> Result<(), PreflightFault> {
    // The limit comes first: an old kernel accounts the trial ring itself as locked memory.
    raise(Limit::LockedMemory, locked_bytes(needs, may_lock_beyond_limit()))?;
    let ring = IoUring::new(TRIAL_ENTRIES).map_err(|error| explain(&error, sysctl()))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| explain(&error, sysctl()))?;
    let missing: Vec<&str> =
        OPCODES.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(PreflightFault::Opcodes(missing)) }
}

/// Makes room for `need` open files. Only as many as are needed: children inherit the limit, and
/// some programs walk through every descriptor below it. Gives back how many are allowed now.
///
/// # Errors
/// When fewer are allowed and this process may not change that.
pub fn raise_open_files(need: u64) -> Result<u64, PreflightFault> {
    raise(Limit::OpenFiles, need)
}

/// Bytes that executors lock. A holder of CAP_IPC_LOCK is not accounted, but glommio's floor stays.
fn locked_bytes(needs: &Needs, beyond_limit: bool) -> u64 {
    let each = (needs.io_memory_bytes as u64).next_multiple_of(4096).max(IO_MEMORY_BYTES_MIN);
    let all = needs.executors as u64 * RINGS_PER_EXECUTOR * each;
    if beyond_limit { LOCKED_BYTES_MIN } else { all.max(LOCKED_BYTES_MIN) }
}

/// Raises a soft limit so that `need` fits: locked memory up to the hard limit, because only memory
/// that is really locked counts there, open files to `need` only. A hard limit is raised where it is
/// too low and we have the privilege.
fn raise(limit: Limit, need: u64) -> Result<u64, PreflightFault> {
    let (soft, hard): (rlim_t, rlim_t) =
        getrlimit(limit.resource()).map_err(|errno| PreflightFault::Limit(limit, errno))?;
    let wanted = match limit {
        Limit::LockedMemory => need.max(hard),
        Limit::OpenFiles => need,
    };
    if soft >= wanted {
        return Ok(soft);
    }
    match setrlimit(limit.resource(), wanted, hard.max(wanted)) {
        Ok(()) => Ok(wanted),
        Err(Errno::EPERM) => Err(limit.too_low(need, hard)),
        Err(errno) => Err(PreflightFault::Limit(limit, errno)),
    }
}

/// Whether the effective capabilities hold CAP_IPC_LOCK. Unknown counts as no.
fn may_lock_beyond_limit() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << CAP_IPC_LOCK) != 0)
}

/// The setting of the sysctl; kernels before 6.6 have none.
fn sysctl() -> Option<u32> {
    fs::read_to_string(SYSCTL).ok().and_then(|text| text.trim().parse().ok())
}

/// Why a ring was refused.
fn explain(error: &io::Error, sysctl: Option<u32>) -> PreflightFault {
    match (error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw), sysctl) {
        (Errno::ENOSYS, _) => PreflightFault::RingAbsent,
        (Errno::EPERM, Some(setting)) if setting != 0 => PreflightFault::RingSwitchedOff { setting },
        (Errno::EPERM, _) => PreflightFault::RingFiltered,
        (errno, _) => PreflightFault::Ring(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;
    use crate::signals::tests::{child_output, child_test};

    const SMALL: Needs = Needs { executors: 4, io_memory_bytes: 64 << 10 };

    #[test]
    fn locked_memory_is_what_the_executors_register() {
        assert_eq!(locked_bytes(&SMALL, false), 4 * 3 * (64 << 10));
        assert_eq!(locked_bytes(&Needs { executors: 1, io_memory_bytes: 1 }, false), LOCKED_BYTES_MIN);
        assert_eq!(locked_bytes(&Needs { executors: 3, io_memory_bytes: 1_000_000 }, false), 9 * 1_003_520);
        assert_eq!(locked_bytes(&Needs { executors: 66, io_memory_bytes: 1 << 20 }, true), LOCKED_BYTES_MIN);
    }

    #[test]
    fn refusals_name_their_cure() {
        let refused = |errno: Errno, sysctl| explain(&io::Error::from_raw_os_error(errno as i32), sysctl);
        assert_eq!(refused(Errno::EPERM, Some(2)), PreflightFault::RingSwitchedOff { setting: 2 });
        assert!(refused(Errno::EPERM, Some(1)).to_string().contains("sysctl kernel.io_uring_disabled=0"));
        assert_eq!(refused(Errno::EPERM, Some(0)), PreflightFault::RingFiltered);
        assert_eq!(refused(Errno::EPERM, None), PreflightFault::RingFiltered);
        assert_eq!(refused(Errno::ENOSYS, None), PreflightFault::RingAbsent);
        assert_eq!(refused(Errno::EMFILE, Some(0)), PreflightFault::Ring(Errno::EMFILE));
        let memory = PreflightFault::LockedMemory { need: 786_432, have: 65_536 }.to_string();
        assert!(memory.contains("768 KiB") && memory.contains("64 KiB") && memory.contains("LimitMEMLOCK=64M"));
    }

    #[test]
    fn no_opcode_is_listed_twice() {
        let codes: std::collections::BTreeSet<u8> = OPCODES.iter().map(|(_, code)| *code).collect();
        assert_eq!(codes.len(), OPCODES.len());
    }

    /// What `check` says in a process that `prepare` has restricted.
    fn checked_after(prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> String {
        let mut child = child_test("preflight::tests::child_checks");
        // SAFETY: what runs between fork and exec must be async-signal-safe and must not allocate:
        // each `prepare` below makes system calls on values that it owns already, nothing else.
        unsafe { child.pre_exec(prepare) };
        child_output(&mut child)
    }

    #[test]
    #[ignore = "run in a child process by the other tests"]
    fn child_checks() {
        match check(&SMALL) {
            Ok(()) => println!("checked: fine"),
            Err(fault) => println!("checked: {fault:?}"),
        }
        println!("limits: {:?}", getrlimit(Resource::RLIMIT_MEMLOCK).expect("limits can be read"));
    }

    fn set_limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
        setrlimit(resource, soft, hard).map_err(io::Error::from)
    }

    /// Takes a capability from what root will have after exec. Others have none to lose.
    fn lose(capability: u32) {
        // EPERM is the answer to a process that has no privileges anyway.
        // SAFETY: PR_CAPBSET_DROP reads its one integer argument and no memory.
        let _ = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    }

    const CAP_SYS_RESOURCE: u32 = 24;

    #[test]
    fn a_hard_limit_that_is_too_low_is_refused_before_any_executor() {
        let said = checked_after(|| {
            lose(CAP_SYS_RESOURCE);
            lose(CAP_IPC_LOCK);
            set_limit(Resource::RLIMIT_MEMLOCK, 65_536, 65_536)
        });
        assert!(said.contains("checked: LockedMemory { need: 786432, have: 65536 }"), "{said}");
    }

    #[test]
    fn a_soft_limit_is_raised_up_to_the_hard_one() {
        let said = checked_after(|| {
            lose(CAP_SYS_RESOURCE);
            lose(CAP_IPC_LOCK);
            set_limit(Resource::RLIMIT_MEMLOCK, 65_536, 800_000)
        });
        // Whether this machine has io_uring is not the point here; the limit is.
        assert!(said.contains("limits: (800000, 800000)") && !said.contains("LockedMemory"), "{said}");
    }

    #[test]
    fn a_filter_that_refuses_io_uring_is_a_fault_and_no_panic() {
        let code = |code: u32| u16::try_from(code).expect("instruction codes have 16 bits");
        let load = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
        let equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
        let answer = code(libc::BPF_RET | libc::BPF_K);
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let setup = u32::try_from(libc::SYS_io_uring_setup).expect("system call numbers are small");
        // Load the system call's number; io_uring_setup gets EPERM, everything else is allowed.
        let mut filter = [
            step(load, 0, 0, 0),
            step(equal, 0, 1, setup),
            step(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
            step(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let said = checked_after(move || {
            let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
            // SAFETY: PR_SET_NO_NEW_PRIVS reads its integer arguments; PR_SET_SECCOMP reads `program`
            // and the `len` instructions it points to, which live in this closure until it returns.
            let done = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
            };
            if done { Ok(()) } else { Err(io::Error::last_os_error()) }
        });
        let expected = match sysctl() {
            Some(setting) if setting != 0 => "checked: RingSwitchedOff",
            Some(_) | None => "checked: RingFiltered",
        };
        assert!(said.contains(expected), "{said}");
    }

    #[test]
    fn open_files_are_raised_and_never_lowered() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits can be read");
        assert_eq!(raise_open_files(1), Ok(soft));
        let wanted = hard.min(soft.saturating_add(1));
        assert_eq!(raise_open_files(wanted), Ok(wanted.max(soft)));
    }
}
