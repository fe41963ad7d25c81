//! The resumable stream inside a `peerpods-agent/1` connection.

mod options;
mod state;
mod stream;

pub use options::ResumeOptions;
pub use state::{SessionLost, StreamState};
pub use stream::AgentStream;
