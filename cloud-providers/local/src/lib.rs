//! Local machines (QEMU, namespaces) and the provider that launches pod VMs on them.
//!
//! * [`LocalProvider`] is the [`peerpods_cloud_api::CloudProvider`] of this host: it gives an instance an address, a bridge and a
//!   machine. All it knows is in the machines' folders, so any number of processes may hold one, one after the other or at once.
//! * [`machine`] is what lies under it: one folder and one detached process for each machine.
//! * [`machine_helper_main`] must be called by the program's `main` when its first argument is [`MACHINE_HELPER`]: machines are
//!   started by a fresh, single-threaded copy of the running program.
//!
//! What is deliberately absent: forwarding, NAT and firewall rules. A machine reaches what has an address on its bridge; whoever
//! wants more sets it up.

pub mod machine;
mod provider;

pub use machine::helper::{MACHINE_HELPER, machine_helper_main};
pub use provider::LocalProvider;
