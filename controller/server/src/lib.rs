//! The controller's wiring: configuration to a running engine behind the Claims service.
//!
//! What it owns on disk, all in `state_dir` (mode 0700): the Journal (`journal.redb`, locked while a controller runs), the owner tag
//! (`owner`) and the binder CA (`binder-ca.pem`, mode 0600). Whoever loses that folder loses the pod VMs' owner tag with it: they must
//! then be deleted by hand. The controller may be killed at any time; machines run on, and the next start finishes what was begun.

mod admin;
mod claims;
mod cleanup;
mod http;
mod journal;
pub mod logging;
mod metrics;
mod providers;
mod server;
mod state_dir;

pub use cleanup::{CleanupError, clean_up};
pub use journal::RedbJournal;
pub use providers::{Provider, connect};
pub use server::{ServerError, serve};
pub use state_dir::{StateDir, StateError};
