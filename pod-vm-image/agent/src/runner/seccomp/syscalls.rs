//! The numbers of system calls.

use std::str::FromStr as _;

/// An architecture's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// 64 bits.
    X86_64,
    /// 64 bits with short pointers: the numbers of [`Table::X86_64`] with a bit set, some others beside.
    X32,
    /// 32 bits.
    X86,
}

/// Tells X32's calls from those of X86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_X86: u32 = 0x4000_0003;
/// Those whose arguments X32 lays out differently, from number 512 on.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];
const X32_FIRST: u32 = 512;

impl Table {
    /// The kernel's name of the architecture.
    pub(super) fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => AUDIT_X86_64,
            Self::X86 => AUDIT_X86,
        }
    }

    /// The numbers of a system call: none if it is unknown; more than one for those that X32 has twice.
    pub(super) fn numbers(self, name: &str) -> Vec<u32> {
        let wide = || syscalls::x86_64::Sysno::from_str(name).ok().and_then(|number| u32::try_from(number.id()).ok());
        match self {
            Self::X86_64 => wide().into_iter().collect(),
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok().and_then(|number| u32::try_from(number.id()).ok()).into_iter().collect(),
            Self::X32 => {
                let own = (X32_FIRST..).zip(X32_OWN).find(|(_, own)| *own == name).map(|(number, _)| number);
                wide().into_iter().chain(own).map(|number| number | X32_BIT).collect()
            }
        }
    }
}
