//! Scenarios: one story of a pod, told on runc and on peer pods by the same containerd, and the two accounts compared.
//!
//! A [`Story`] writes down what a kubelet would see: exit codes, logs, reasons, errors. Ids, addresses and paths are replaced by
//! their roles, so whatever still differs is a difference. One that a VM must show is accepted by name, with its reason, and must
//! then really be seen.

mod container;
mod pod;
mod running;
mod story;
mod transcript;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};

pub use container::Container;
pub use pod::{Pod, RunningPod};
pub use running::Running;
pub use story::{Naming, Story};

use crate::{Handler, Rig, Version};
use transcript::Transcript;

/// How long one telling may take.
const LIMIT: Duration = Duration::from_secs(240);

type Telling = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// A story with a name, and the differences that it may show.
pub struct Scenario {
    /// A present-tense claim.
    pub name: &'static str,
    tell: Box<dyn Fn(Story) -> Telling + Send + Sync>,
    differences: Vec<Difference>,
    only: Option<Version>,
}

/// A difference that must be there.
struct Difference {
    /// The step of the transcript.
    step: &'static str,
    /// What peer pods say there; "" when the step is missing.
    peer_pods: &'static str,
    because: &'static str,
    /// The containerd that shows it; `None` for both.
    only: Option<Version>,
}

impl Scenario {
    /// A scenario that shows no difference.
    pub fn new<F: Future<Output = Result<()>> + Send + 'static>(
        name: &'static str,
        tell: impl Fn(Story) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { name, tell: Box::new(move |story| Box::pin(tell(story))), differences: Vec::new(), only: None }
    }

    /// At this step peer pods say something that contains `peer_pods`, and runc does not, for this reason.
    pub fn differs(mut self, step: &'static str, peer_pods: &'static str, because: &'static str) -> Self {
        self.differences.push(Difference { step, peer_pods, because, only: None });
        self
    }

    /// The same with this containerd alone.
    pub fn differs_on(mut self, version: Version, step: &'static str, peer_pods: &'static str, because: &'static str) -> Self {
        self.differences.push(Difference { step, peer_pods, because, only: Some(version) });
        self
    }

    /// What it needs is in this containerd alone.
    pub fn only(mut self, version: Version) -> Self {
        self.only = Some(version);
        self
    }

    /// Whether it is told on this containerd.
    pub fn is_for(&self, version: Version) -> bool {
        self.only.is_none_or(|only| only == version)
    }

    /// Tells it on both; `Err` holds all unexplained differences and both transcripts.
    pub async fn compare(&self, rig: &Arc<Rig>) -> Result<(), String> {
        let (runc, ours) = tokio::join!(self.transcript(rig, Handler::Runc), self.transcript(rig, Handler::PeerPods));
        let problems = self.problems(rig.options().version, &runc, &ours);
        if problems.is_empty() {
            return Ok(());
        }
        Err(format!("{}\n--- transcript on runc\n{runc}\n--- transcript on peer-pods\n{ours}", problems.join("\n")))
    }

    /// Tells it on one handler; `Err` when it could not be told to its end.
    pub async fn tell_on(&self, rig: &Arc<Rig>, handler: Handler) -> Result<String, String> {
        let transcript = self.transcript(rig, handler).await;
        if transcript.failure().is_some() { Err(transcript.to_string()) } else { Ok(transcript.to_string()) }
    }

    async fn transcript(&self, rig: &Arc<Rig>, handler: Handler) -> Transcript {
        let story = match Story::begin(Arc::clone(rig), handler, self.name).await {
            Ok(story) => story,
            Err(error) => return Transcript::failed(&format!("{error:#}")),
        };
        let told = tokio::time::timeout(LIMIT, (self.tell)(story.clone())).await;
        let outcome = told.map_err(|_| anyhow::anyhow!("not told within {LIMIT:?}")).and_then(|result| result);
        if let Err(error) = outcome {
            story.fail(&format!("{error:#}"));
        }
        let cleaned = tokio::time::timeout(LIMIT, story.clean_up()).await.context("cleaning up takes too long").and_then(|result| result);
        if let Err(error) = cleaned {
            story.fail(&format!("cleaning up: {error:#}"));
        }
        story.end()
    }

    fn problems(&self, version: Version, runc: &Transcript, ours: &Transcript) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(failure) = runc.failure() {
            problems.push(format!("on runc the story broke off: {failure}"));
        }
        let differences: Vec<&Difference> = self.differences.iter().filter(|d| d.only.is_none_or(|only| only == version)).collect();
        let mut seen = vec![false; differences.len()];
        for (step, expected, found) in runc.differences(ours) {
            let accepted = differences.iter().position(|d| d.step == step && found.as_deref().unwrap_or("").contains(d.peer_pods));
            match accepted {
                Some(index) => seen[index] = true,
                None => problems.push(format!(
                    "at {step:?}\n  runc:      {}\n  peer-pods: {}",
                    expected.as_deref().unwrap_or("(no such step)"),
                    found.as_deref().unwrap_or("(no such step)")
                )),
            }
        }
        for (difference, _) in differences.iter().zip(seen).filter(|(_, seen)| !seen) {
            problems.push(format!("the accepted difference at {:?} ({}) was not seen", difference.step, difference.because));
        }
        problems
    }
}

/// Names functions and makes scenarios of them.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident $(.$more:ident($($argument:expr),* $(,)?))*),* $(,)?) => {
        vec![$($crate::Scenario::new(stringify!($name), $name)$(.$more($($argument),*))*),*]
    };
}
