//! Which connections are looked at: a token bucket before the TLS handshake, and a cap on how many are in progress.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::GuestLimits;

/// Admits connections. One for each endpoint.
pub(super) struct Admission {
    bucket: Mutex<Bucket>,
    slots: Arc<Semaphore>,
}

/// Why a connection was not admitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    TooFast,
    TooMany,
}

impl Admission {
    pub(super) fn new(limits: &GuestLimits) -> Self {
        let bucket = Bucket::new(limits.handshakes_per_sec, limits.handshake_burst, Instant::now());
        Self { bucket: Mutex::new(bucket), slots: Arc::new(Semaphore::new(limits.concurrent)) }
    }

    /// Takes a slot, to be held until the peer is known; never waits.
    pub(super) fn try_admit(&self) -> Result<OwnedSemaphorePermit, NotAdmitted> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| NotAdmitted::TooMany)?;
        let mut bucket = self.bucket.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if bucket.take(Instant::now()) { Ok(slot) } else { Err(NotAdmitted::TooFast) }
    }
}

/// A token bucket in units of time: `credit` is time that has passed unused.
struct Bucket {
    each: Duration,
    most: Duration,
    credit: Duration,
    seen: Instant,
}

impl Bucket {
    fn new(per_sec: u32, burst: u32, now: Instant) -> Self {
        let each = Duration::from_secs(1) / per_sec.max(1);
        let most = each * burst.max(1);
        Self { each, most, credit: most, seen: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.credit = (self.credit + now.duration_since(self.seen)).min(self.most);
        self.seen = now;
        match self.credit.checked_sub(self.each) {
            Some(rest) => {
                self.credit = rest;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_gives_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 3, start);
        let taken = (0..5).filter(|_| bucket.take(start)).count();
        assert_eq!(taken, 3);
        assert!(!bucket.take(start + Duration::from_millis(99)));
        assert!(bucket.take(start + Duration::from_millis(100)));
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..5).filter(|_| bucket.take(much_later)).count(), 3);
    }

    #[tokio::test]
    async fn slots_come_back_when_dropped() {
        let admission = Admission::new(&GuestLimits { concurrent: 1, ..GuestLimits::default() });
        let slot = admission.try_admit().unwrap();
        assert_eq!(admission.try_admit().unwrap_err(), NotAdmitted::TooMany);
        drop(slot);
        assert!(admission.try_admit().is_ok());
    }
}
