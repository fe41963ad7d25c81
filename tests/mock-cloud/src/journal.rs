//! What was called, and what came of it.

use serde::Serialize;

/// Older calls are forgotten.
const KEPT: usize = 100_000;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Since the cloud began, in milliseconds.
    pub at_ms: u64,
    /// The API's action.
    pub action: String,
    /// Its parameters; user data as a hash, nothing of the signature.
    pub parameters: std::collections::BTreeMap<String, String>,
    /// `ok`, or the error's code.
    pub outcome: String,
    /// The fault that was injected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<crate::faults::Kind>,
}

/// All calls.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    calls: std::collections::VecDeque<Call>,
}

impl Journal {
    pub(crate) fn add(&mut self, call: Call) {
        if self.calls.len() == KEPT {
            self.calls.pop_front();
        }
        self.calls.push_back(call);
    }

    pub(crate) fn all(&self) -> Vec<Call> {
        self.calls.iter().cloned().collect()
    }
}
