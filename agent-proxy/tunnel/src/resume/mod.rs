//! The resumable stream inside a `peerpods-agent/1` connection.
//!
//! [`stream`] is what users hold. A [`driver`] task moves its bytes: [`pump`] over one connection, a [`driver::Line`] for the next
//! one. [`outbox`] and [`inbox`] are the two directions, [`preamble`] and [`frame`] the wire format.

mod driver;
mod egress;
mod frame;
mod inbox;
mod options;
mod outbox;
mod preamble;
mod pump;
mod shared;
mod state;
mod stream;

pub(crate) use driver::{Candidate, Driver, Line};
pub use options::ResumeOptions;
pub(crate) use preamble::{Claim, Preamble, RESUME_LABEL, Reply, ResumeRefusal, SECRET_LABEL, SessionId, SessionKey, Speaker};
pub use state::{SessionLost, StreamState};
pub use stream::AgentStream;
