//! What an operator watches: sandboxes by state, time spent in each phase.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry as Metered;

use crate::record::{Phase, SandboxState};

/// Histograms of phases; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    phases: Family<PhaseLabel, Histogram, fn() -> Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        // 1 ms to 4.5 min.
        Self { phases: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 19))) }
    }
}

impl Metrics {
    /// Notes how long a phase took.
    pub fn observe(&self, phase: Phase, ms: u64) {
        // Milliseconds of any pod's life fit a double exactly.
        #[allow(clippy::cast_precision_loss)]
        let seconds = ms as f64 / 1000.0;
        self.phases.get_or_create(&PhaseLabel { phase: phase.as_str() }).observe(seconds);
    }

    /// Everything as text; `states` are those of all sandboxes.
    pub fn encode(&self, states: impl Iterator<Item = &'static str>) -> String {
        let sandboxes = Family::<StateLabel, Gauge>::default();
        for state in SandboxState::NAMES {
            sandboxes.get_or_create(&StateLabel { state }).set(0);
        }
        for state in states {
            sandboxes.get_or_create(&StateLabel { state }).inc();
        }
        let mut metered = Metered::default();
        metered.register("peerpods_sandboxes", "Sandboxes by state", sandboxes);
        metered.register("peerpods_sandbox_phase_seconds", "Time that finished phases of bring-up took", self.phases.clone());
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &metered);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_phases_are_shown() {
        let metrics = Metrics::default();
        metrics.observe(Phase::Bind, 20);
        let text = metrics.encode(["ready", "ready"].into_iter());
        assert!(text.contains("peerpods_sandboxes{state=\"ready\"} 2"), "{text}");
        assert!(text.contains("peerpods_sandboxes{state=\"failed\"} 0"), "{text}");
        assert!(text.contains("peerpods_sandbox_phase_seconds_count{phase=\"bind\"} 1"), "{text}");
    }
}
