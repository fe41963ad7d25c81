//! Claims to pod VMs: what the controller does between a node's wish and the cloud.
//!
//! One task, [`Driver::run`], is the only writer. It holds the [`Journal`]'s records and what has been observed of the cloud, asks the
//! pure [`plan`] what to do, writes records and makes calls, and feeds the results back. Others talk to it through [`Handle`].
//!
//! Order of every side effect: write intent, act with a token derived from it, write the result. The process may die between any two
//! instructions: on start the driver loads the records, lists what carries its owner tag and lets the planner finish or undo. Nothing
//! of what is observed is ever stored; nothing of what is stored is ever guessed.
//!
//! Architecture Invariant: the planner has no clock and no IO. Architecture Invariant: a pod VM's record is removed only when the cloud
//! has said that the instance is not found.

mod admission;
mod buckets;
pub mod conformance;
mod driver;
mod handle;
mod journal;
mod observed;
pub mod plan;
mod records;
mod report;
mod store;
mod timing;
mod view;

pub use admission::{AdmissionError, ClaimSpec};
pub use buckets::Buckets;
pub use driver::{Console, Driver, DriverError, Parts};
pub use handle::{Handle, RequestError};
pub use journal::{Journal, JournalError, MemoryJournal, Revision, Stored};
pub use observed::{Call, Observed, Outcome, Refusal, Seen};
pub use records::Records;
pub use timing::Timing;
pub use view::{ClaimView, Totals};
