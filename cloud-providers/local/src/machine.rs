//! Machines of this host: one folder, one detached process and one link each.
//!
//! A machine is known by its folder `<state_dir>/machines/<instance id>/` alone. Its `machine.json` ([`Record`]) is on disk before
//! anything else of the machine exists and is the last thing to go, so that a process that dies between any two steps leaves
//! something that the next one finds and either finishes ([`Host::start`]) or removes ([`Host::delete`]).
//!
//! ```text
//! planned --start--> started --delete--> deleting --(process has ended)--> no folder
//!    \______________________delete______/
//! ```
//!
//! How a process is started without ever losing sight of it: the helper ([`helper`]) makes the machine's process, which waits on a
//! pipe; its pid and start time are recorded; only then is it told to go on. If we die before, it reads end-of-file and exits, having
//! done nothing. The process belongs to nobody: own session, no open files of ours, reaped by init. A machine with a software TPM has
//! a second one that needs no record, as it cannot outlive the first ([`tpm`]).
//!
//! Everything here blocks; [`crate::LocalProvider`] calls it from blocking threads. Locks are `flock`s, which die with their holder:
//! `<state_dir>/lock` guards planning, addresses and the bridge; `<machine>/lock` guards a machine's steps.

mod accelerator;
mod address;
mod console;
mod crash;
mod delete;
mod error;
mod facts;
mod files;
pub(crate) mod helper;
mod host;
mod netlink;
mod network;
mod process;
mod qemu;
mod qmp;
mod record;
#[cfg(feature = "sandbox")]
mod sandbox;
mod spawn;
mod start;
mod tpm;
mod tsc;
mod types;
mod verify;

pub use crash::CrashPoints;
pub use error::MachineError;
pub use host::Host;
pub use process::ProcessId;
pub use record::{Phase, Record};

pub(crate) use files::LOCK_LIMIT;
pub(crate) use tpm::SETUP_LIMIT as TPM_SETUP_LIMIT;
