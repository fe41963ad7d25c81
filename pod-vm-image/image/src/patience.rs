//! How long a registry that cannot serve now is waited for. Pure but for a grain of randomness.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;

use crate::Limits;

/// The waits of one request.
#[derive(Debug)]
pub(crate) struct Patience<'a> {
    limits: &'a Limits,
    tries: u32,
    waited: Duration,
}

impl<'a> Patience<'a> {
    pub(crate) fn new(limits: &'a Limits) -> Self {
        Self { limits, tries: 0, waited: Duration::ZERO }
    }

    /// How long to wait before the next try; `None` when there is none. `asked` is what the registry wants.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        if self.tries >= self.limits.retries {
            return None;
        }
        let pause = asked.unwrap_or_else(|| backoff(self.limits.retry_pause, self.tries));
        self.tries += 1;
        self.waited = self.waited.checked_add(pause).filter(|waited| *waited <= self.limits.retry_within)?;
        Some(pause)
    }

    /// Something came of the last try: the next one is the first again.
    pub(crate) fn begin_again(&mut self) {
        self.tries = 0;
    }
}

/// Whether the answer may be another one in a moment.
pub(crate) fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504)
}

/// `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    match header.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(header.trim()).ok().map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

/// Twice as long each time, and up to half of that more: pods that were started together must not come back together.
fn backoff(first: Duration, tries: u32) -> Duration {
    let pause = first.saturating_mul(1 << tries.min(16));
    // The keys of a RandomState are random, which is all that is needed here.
    let grain = u32::from(RandomState::new().hash_one(tries).to_le_bytes()[0]);
    pause + pause * grain / 512
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { retries: 3, retry_pause: Duration::from_secs(1), retry_within: Duration::from_secs(20), ..Limits::default() }
    }

    #[test]
    fn pauses_grow_and_end() {
        let limits = limits();
        let mut patience = Patience::new(&limits);
        for least in [1, 2, 4] {
            let pause = patience.next(None).unwrap().as_secs_f64();
            assert!((f64::from(least)..f64::from(least) * 1.5).contains(&pause), "{pause}");
        }
        assert_eq!(patience.next(None), None);
        patience.begin_again();
        assert!(patience.next(None).is_some());
    }

    #[test]
    fn what_the_registry_asks_for_is_kept_within_the_limit() {
        let limits = limits();
        let mut patience = Patience::new(&limits);
        assert_eq!(patience.next(Some(Duration::from_secs(15))), Some(Duration::from_secs(15)));
        assert_eq!(patience.next(Some(Duration::from_secs(6))), None, "21 s in all");
        assert_eq!(Patience::new(&limits).next(Some(Duration::MAX)), None);
    }

    #[test]
    fn both_forms_of_the_header_are_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after(" 120 ", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO), "it is over already");
        for bad in ["", "-1", "soon", "1.5", "99999999999999999999"] {
            assert_eq!(retry_after(bad, now), None, "{bad}");
        }
    }
}
