//! The cloud's own side of its limits.

use peerpods_cloud_api::{Limits, Rate};
use tokio::time::Instant;

/// One token bucket.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    tokens: f64,
    seen: Instant,
}

impl Bucket {
    fn take(&mut self, count: u32, now: Instant) -> bool {
        let back = now.saturating_duration_since(self.seen).as_secs_f64() * f64::from(self.rate.per_second);
        (self.tokens, self.seen) = ((self.tokens + back).min(f64::from(self.rate.burst)), now);
        let is_enough = self.tokens >= f64::from(count);
        if is_enough {
            self.tokens -= f64::from(count);
        }
        is_enough
    }
}

/// What a call takes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// A launch of so many.
    Launch(u32),
    Read,
    Delete,
}

/// All buckets of an account.
#[derive(Debug, Default)]
pub(crate) struct Buckets {
    launches: Option<Bucket>,
    instances: Option<Bucket>,
    reads: Option<Bucket>,
    deletes: Option<Bucket>,
}

impl Buckets {
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket { rate, tokens: f64::from(rate.burst), seen: now });
        Self {
            launches: bucket(limits.launches),
            instances: bucket(limits.instances),
            reads: bucket(limits.reads),
            deletes: bucket(limits.deletes),
        }
    }

    /// False when the call is one too many.
    pub(crate) fn take(&mut self, call: Call, now: Instant) -> bool {
        let from = |bucket: &mut Option<Bucket>, count| bucket.as_mut().is_none_or(|bucket| bucket.take(count, now));
        match call {
            Call::Launch(count) => from(&mut self.launches, 1) && from(&mut self.instances, count),
            Call::Read => from(&mut self.reads, 1),
            Call::Delete => from(&mut self.deletes, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_is_full_at_first_and_fills_again() {
        let now = Instant::now();
        let mut buckets = Buckets::new(Limits::EC2, now);
        let taken = (0..10).filter(|_| buckets.take(Call::Launch(1), now)).count();
        assert_eq!(taken, 5, "EC2 allows five launches at once");
        assert!(!buckets.take(Call::Launch(1), now + Duration::from_millis(400)));
        assert!(buckets.take(Call::Launch(1), now + Duration::from_millis(1000)));
        assert!(buckets.take(Call::Read, now) && buckets.take(Call::Delete, now));
    }
}
