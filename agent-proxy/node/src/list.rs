//! `peerpods-node list`: what the files say, whether or not a daemon runs.

use serde::Serialize;

use crate::record::{PhaseRecord, SandboxRecord, SandboxState};

/// One sandbox as `list --json` shows it.
#[derive(Debug, Serialize)]
pub struct Listed<'a> {
    sandbox_id: &'a str,
    /// `namespace/name`.
    pod: String,
    state: &'static str,
    instance_id: Option<&'a str>,
    phases: &'a [PhaseRecord],
    /// Why bring-up has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
}

impl<'a> Listed<'a> {
    /// What there is to show of a record.
    pub fn new(record: &'a SandboxRecord) -> Self {
        let failure = match &record.state {
            SandboxState::Failed(failure) => Some(format!("cannot {}: {}", failure.during, failure.cause)),
            _ => None,
        };
        Self {
            sandbox_id: record.sandbox_id.as_str(),
            pod: record.pod.to_string(),
            state: record.state.as_str(),
            instance_id: record.state.instance_id(),
            phases: &record.phases,
            failure,
        }
    }
}

/// A table for people.
pub fn table(records: &[SandboxRecord]) -> String {
    let mut text = format!("{:14} {:40} {:10} {:24} phases (ms)\n", "SANDBOX", "POD", "STATE", "INSTANCE");
    for record in records {
        let listed = Listed::new(record);
        let id: String = listed.sandbox_id.chars().take(13).collect();
        let phases: Vec<String> = record.phases.iter().map(|p| format!("{} {}", p.phase.as_str(), p.ms)).collect();
        text.push_str(&format!(
            "{id:14} {:40} {:10} {:24} {}\n",
            listed.pod,
            listed.state,
            listed.instance_id.unwrap_or("-"),
            phases.join(", ")
        ));
        if let Some(failure) = listed.failure {
            text.push_str(&format!("  {failure}\n"));
        }
    }
    text
}
