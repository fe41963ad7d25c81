//! Loads filters of system calls for the runner: what it does itself has safe interfaces, this has none.

use std::io;

use nix::libc;
use peerpods_agent::runner::Instruction;

/// Loads a filter for this thread.
#[allow(unsafe_code, reason = "seccomp(2) has no safe interface that leaves no_new_privs alone")]
pub(crate) fn load(filter: &[Instruction], flags: u32) -> io::Result<()> {
    let line = |one: &Instruction| libc::sock_filter { code: one.code, jt: one.jt, jf: one.jf, k: one.k };
    let mut lines: Vec<libc::sock_filter> = filter.iter().map(line).collect();
    let length = u16::try_from(lines.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: lines.as_mut_ptr() };
    // SAFETY: the kernel only reads the program, whose length is that of the vector, during the call; the vector outlives it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
