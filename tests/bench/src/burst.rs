//! Many pods at once under EC2's documented limits, in virtual time.

use anyhow::Result;
use peerpods_simulator::{burst, one_call_each};

use crate::figure::{Budget, Figure};

/// As many pods as a large deployment asks for.
const PODS: u32 = 1_000;
/// Ten times as many: most wait for the bucket of instances, 1,000 and then two a second.
const OVERLOAD: u32 = 10_000;

/// A burst, and one that the account cannot serve for an hour.
pub(crate) fn run() -> Result<Vec<Figure>> {
    let (ours, theirs) = (burst(PODS)?, one_call_each(PODS)?);
    let overload = burst(OVERLOAD)?;
    let calls = |burst: &peerpods_simulator::Burst, name| burst.calls.get(name).copied().unwrap_or_default() as f64;
    let figure = |name: &str, value: f64, unit, baseline_value: f64, budget| Figure {
        name: name.to_owned(),
        value,
        unit,
        baseline: "one call for each pod".to_owned(),
        baseline_value,
        budget,
    };
    Ok(vec![
        figure(
            "1,000 pods until the cloud has accepted all",
            ours.accepted.as_secs_f64(),
            "s",
            theirs.accepted.as_secs_f64(),
            Budget::AtMost(15.0),
        ),
        figure("  RunInstances", calls(&ours, "launch"), "calls", calls(&theirs, "launch"), Budget::AtMost(20.0)),
        figure("  reads of the cloud", calls(&ours, "read"), "calls", calls(&theirs, "read"), Budget::AtMost(f64::from(PODS))),
        figure("  calls refused by the cloud", ours.throttled as f64, "calls", theirs.throttled as f64, Budget::None),
        Figure {
            name: "10,000 pods at once, pods failed".to_owned(),
            value: overload.failed as f64,
            unit: "pods",
            baseline: "seconds until all were served".to_owned(),
            baseline_value: overload.served.as_secs_f64(),
            budget: Budget::AtMost(0.0),
        },
    ])
}
