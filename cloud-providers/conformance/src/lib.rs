//! What every [`CloudProvider`] must show, as cases that run against any of them.
//!
//! A [`Subject`] says how to open the provider and what it offers; [`run`] plays the cases one after the other, each with an owner tag of
//! its own, deletes what a case made, and proves that nothing of it is left. The engine relies on every one of them.

mod cases;
mod trial;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use peerpods_cloud_api::{CloudProvider, Tee, Zone};

pub use cases::CASES;
pub use trial::Trial;

/// A provider under test.
pub struct Subject {
    /// Opens the provider once more on the same account.
    pub open: Box<dyn Fn() -> Arc<dyn CloudProvider>>,
    /// Starts every owner tag; another one for every run on an account that outlives it.
    pub owner_prefix: String,
    /// An instance type to launch.
    pub instance_type: String,
    /// A TEE that it has.
    pub tee: Tee,
    /// Where to launch; `None` leaves it to the provider.
    pub zone: Option<Zone>,
    /// The largest batch that may be launched here, at least 3: real instances cost memory or money.
    pub largest_batch: u32,
}

/// A name, and the case itself.
pub type Case = (&'static str, for<'a> fn(&'a Trial) -> futures::future::LocalBoxFuture<'a, Result<()>>);

/// How a run went.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many cases passed.
    pub passed: usize,
    /// Names and reasons of those that did not.
    pub failed: Vec<(&'static str, String)>,
}

/// More than any case takes, deletions included.
const DEADLINE: Duration = Duration::from_secs(600);

/// Runs the cases whose names contain `filter`, and prints one line for each.
pub async fn run(subject: &Subject, filter: &str) -> Outcome {
    let mut outcome = Outcome::default();
    let chosen = CASES.iter().filter(|(name, _)| name.contains(filter));
    for (number, (name, case)) in chosen.enumerate() {
        let one = async {
            let trial = Trial::new(subject, number)?;
            let result = case(&trial).await;
            let cleared = trial.clear().await.context("clearing up after the case");
            result.and(cleared)
        };
        let result = tokio::time::timeout(DEADLINE, one).await.unwrap_or_else(|_| Err(anyhow::anyhow!("not done within {DEADLINE:?}")));
        match result {
            Ok(()) => {
                println!("case {name} ... ok");
                outcome.passed += 1;
            }
            Err(error) => {
                println!("case {name} ... FAILED: {error:#}");
                outcome.failed.push((name, format!("{error:#}")));
            }
        }
    }
    outcome
}
