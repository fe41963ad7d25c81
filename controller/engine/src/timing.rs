//! How long the engine waits for what.

use std::time::Duration;

/// Intervals and limits. The defaults suit a local provider; tests use shorter ones.
#[derive(Debug, Clone)]
pub struct Timing {
    /// First interval between looks at something that is expected to change soon; doubles up to `poll_max`.
    pub poll_min: Duration,
    /// Longest such interval.
    pub poll_max: Duration,
    /// Interval between listings when nothing is expected: finds instances that died, whose pods must fail within 5 s, and ones that
    /// nobody owns. One listing serves all of them.
    pub sweep: Duration,
    /// First pause after a failed call; doubles up to `retry_max`.
    pub retry_min: Duration,
    /// Longest such pause.
    pub retry_max: Duration,
    /// How long after its adoption a new instance may be unknown to the cloud's reads.
    pub grace: Duration,
    /// How long claims are gathered before a launch is recorded.
    pub window: Duration,
    /// How long a key that the cloud has refused is not asked for again: another zone or size is, if there is one.
    pub refusal: Duration,
    /// How long a pod VM that nobody was told of is kept for the next claim, beyond what pools keep: a kubelet that gives up on a slow
    /// launch comes back within that time.
    pub reuse: Duration,
    /// How long after a deletion was accepted it is asked for again if the instance is still there.
    pub delete_again: Duration,
    /// Our own limit on each call of the provider.
    pub call_deadline: Duration,
    /// Calls of the provider under way at once.
    pub max_calls: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            poll_min: Duration::from_millis(50),
            poll_max: Duration::from_secs(2),
            sweep: Duration::from_secs(2),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            window: Duration::from_millis(10),
            refusal: Duration::from_secs(20),
            reuse: Duration::from_secs(20),
            delete_again: Duration::from_secs(30),
            call_deadline: Duration::from_secs(120),
            max_calls: 32,
        }
    }
}

impl Timing {
    /// The interval after so many looks without the expected change.
    pub(crate) fn poll(&self, looks: u32) -> Duration {
        doubled(self.poll_min, looks).min(self.poll_max)
    }

    /// The pause after so many failures in a row, between half and all of the doubled time by `jitter` (0 to 999).
    pub(crate) fn retry(&self, failures: u32, jitter: u32) -> Duration {
        let full = doubled(self.retry_min, failures.saturating_sub(1)).min(self.retry_max);
        full / 2 + full / 2 * jitter.min(999) / 1000
    }
}

fn doubled(base: Duration, times: u32) -> Duration {
    base.saturating_mul(1_u32.checked_shl(times.min(20)).unwrap_or(u32::MAX))
}
