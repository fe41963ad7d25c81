//! Waiting for a condition instead of sleeping.

use std::future::Future;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(25);

/// Calls `probe` until it gives a value; an error after `limit` says what was last seen.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = SystemTime::now();
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(last) if begin.elapsed().unwrap_or_default() > limit => bail!("{what}: not within {limit:?}; last seen: {last:#}"),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// The same for probes that wait.
pub async fn eventually_async<T, F: Future<Output = Result<T>>>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> Result<T> {
    let begin = SystemTime::now();
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(last) if begin.elapsed().unwrap_or_default() > limit => bail!("{what}: not within {limit:?}; last seen: {last:#}"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
