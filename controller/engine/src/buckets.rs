//! Token buckets of the cloud's limits, kept on our side: what would be throttled is not sent.
//!
//! They begin full with every life of the process, as nothing is known of the last one. Others may use the account too: what the cloud
//! throttles all the same is paused as any failed call is.

use std::time::Duration;

use peerpods_cloud_api::{Limits, Rate};

use crate::Call;

/// All buckets of an account. Times are since the driver's start.
#[derive(Debug, Clone, Default)]
pub struct Buckets {
    limits: Limits,
    /// When each would be full again, were nothing more taken: one number is a bucket's whole state.
    launches: Duration,
    instances: Duration,
    reads: Duration,
    deletes: Duration,
}

impl Buckets {
    /// Full ones.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// When this call may be made at the earliest; `count` is how many instances it asks for.
    pub fn due(&self, call: &Call, count: u32) -> Duration {
        let Limits { launches, instances, reads, deletes } = self.limits;
        match call {
            Call::Launch(_) => due(launches, self.launches, 1).max(due(instances, self.instances, count)),
            Call::List | Call::Types | Call::Get(_) => due(reads, self.reads, 1),
            Call::Delete(_) => due(deletes, self.deletes, 1),
            Call::Examine(_) => Duration::ZERO,
        }
    }

    /// Takes what this call costs.
    pub fn take(&mut self, call: &Call, count: u32, now: Duration) {
        let Limits { launches, instances, reads, deletes } = self.limits;
        match call {
            Call::Launch(_) => {
                take(launches, &mut self.launches, 1, now);
                take(instances, &mut self.instances, count, now);
            }
            Call::List | Call::Types | Call::Get(_) => take(reads, &mut self.reads, 1, now),
            Call::Delete(_) => take(deletes, &mut self.deletes, 1, now),
            Call::Examine(_) => {}
        }
    }

    /// The shortest interval between listings: it leaves three quarters of the reads to others.
    pub fn listing_interval(&self) -> Duration {
        self.limits.reads.map_or(Duration::ZERO, |rate| time(rate, 4))
    }
}

/// How long so many tokens take to come.
fn time(rate: Rate, tokens: u32) -> Duration {
    Duration::from_secs(u64::from(tokens)) / rate.per_second.max(1)
}

fn due(rate: Option<Rate>, full: Duration, count: u32) -> Duration {
    // More than a bucket holds is taken from a full one, which then stays empty for longer.
    rate.map_or(Duration::ZERO, |rate| full.saturating_sub(time(rate, rate.burst.saturating_sub(count))))
}

fn take(rate: Option<Rate>, full: &mut Duration, count: u32, now: Duration) {
    if let Some(rate) = rate {
        *full = (*full).max(now) + time(rate, count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Brute force: tokens counted as the cloud counts them.
        #[test]
        fn never_more_than_the_cloud_lets_pass_and_never_later(
            burst in 1_u32..20,
            per_second in 1_u32..10,
            wishes in proptest::collection::vec((0_u64..3000, 1_u32..20), 1..40),
        ) {
            let rate = Rate { burst, per_second };
            let mut buckets = Buckets::new(Limits { instances: Some(rate), ..Limits::default() });
            let call = Call::Launch(peerpods_cloud_api::LaunchToken::new("t").expect("valid"));
            let (mut now, mut tokens, mut counted) = (Duration::ZERO, f64::from(burst), Duration::ZERO);
            for (pause, count) in wishes {
                let count = count.min(burst);
                now += Duration::from_millis(pause);
                let at = buckets.due(&call, count).max(now);
                let level = |at: Duration| (tokens + (at - counted).as_secs_f64() * f64::from(per_second)).min(f64::from(burst));
                prop_assert!(level(at) >= f64::from(count) - 1e-6, "{} tokens are there for {count}", level(at));
                let earlier = at.saturating_sub(Duration::from_millis(1)).max(now);
                prop_assert!(at == now || level(earlier) < f64::from(count), "it could have gone before");
                tokens = level(at) - f64::from(count);
                (now, counted) = (at, at);
                buckets.take(&call, count, now);
            }
        }
    }

    #[test]
    fn each_call_has_its_bucket_and_no_limit_means_none() {
        let id = peerpods_cloud_api::InstanceId::new("i-1").expect("valid");
        let mut buckets = Buckets::new(Limits::EC2);
        for _ in 0..100 {
            assert_eq!(buckets.due(&Call::List, 0), Duration::ZERO);
            buckets.take(&Call::List, 0, Duration::ZERO);
        }
        assert_eq!(buckets.due(&Call::Get(id.clone()), 0), Duration::from_millis(50));
        assert_eq!(buckets.due(&Call::Delete(id), 0), Duration::ZERO);
        let mut free = Buckets::default();
        for _ in 0..1000 {
            free.take(&Call::List, 0, Duration::ZERO);
        }
        assert_eq!(free.due(&Call::List, 0), Duration::ZERO);
    }
}
