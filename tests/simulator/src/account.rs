//! An account with limits, as the cloud keeps it.

use peerpods_cloud_api::{Limits, Rate};
use tokio::time::Instant;

/// Its limits, and what is left of them: launches, instances, reads, deletions.
pub(crate) struct Account {
    pub(crate) limits: Limits,
    buckets: [Bucket; 4],
}

impl Account {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, buckets: Default::default() }
    }

    /// Whether a call passes.
    pub(crate) fn draw(&mut self, draw: Draw) -> bool {
        let limits = self.limits;
        let [launches, instances, reads, deletes] = &mut self.buckets;
        match draw {
            Draw::Launch(count) => launches.take(limits.launches, 1) && instances.take(limits.instances, count),
            Draw::Read => reads.take(limits.reads, 1),
            Draw::Delete => deletes.take(limits.deletes, 1),
        }
    }
}

/// Tokens as the cloud counts them; empty until its first use.
#[derive(Default)]
struct Bucket {
    counted: Option<(Instant, f64)>,
}

impl Bucket {
    /// Whether so many tokens were there, which are then taken.
    fn take(&mut self, rate: Option<Rate>, count: u32) -> bool {
        let Some(rate) = rate else { return true };
        let (now, burst) = (Instant::now(), f64::from(rate.burst));
        let level = self.counted.map_or(burst, |(at, level)| burst.min(level + (now - at).as_secs_f64() * f64::from(rate.per_second)));
        let is_enough = level + ROUNDING >= f64::from(count);
        self.counted = Some((now, if is_enough { level - f64::from(count) } else { level }));
        is_enough
    }
}

/// What a clock of milliseconds may lose of a token.
const ROUNDING: f64 = 0.1;

/// Which bucket a call draws from.
#[derive(Clone, Copy)]
pub(crate) enum Draw {
    /// So many instances.
    Launch(u32),
    Read,
    Delete,
}

impl Draw {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Launch(_) => "launch",
            Self::Read => "read",
            Self::Delete => "delete",
        }
    }
}
