//! Time limits of resumable streams.

use std::time::Duration;

/// How long each wait of a stream may take. Both ends have their own; only `window` must not exceed the protocol's 8 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeOptions {
    /// From the loss of a connection until the session is given up.
    pub budget: Duration,
    /// `TCP_USER_TIMEOUT`: sent bytes that stay unacknowledged for this long break the connection.
    pub user_timeout: Duration,
    /// A connection on which nothing was heard for this long is asked for a sign of life.
    pub ping_interval: Duration,
    /// A connection on which nothing was heard for this long, pings included, is broken. Rounded up to whole ping intervals.
    pub silence: Duration,
    /// For one attempt to connect, authenticate and open or resume.
    pub dial_timeout: Duration,
    /// For opening a stream, over all attempts.
    pub open_budget: Duration,
    /// After the stream was dropped: for delivering what had been written.
    pub linger: Duration,
    /// Bytes that may be written but not yet consumed by the peer's reader; at most [`MAX_WINDOW`].
    pub window: usize,
}

/// What the protocol lets a sender have in flight, and so what a receiver must be ready to buffer.
pub(crate) const MAX_WINDOW: usize = 8 << 20;

impl Default for ResumeOptions {
    fn default() -> Self {
        Self {
            budget: Duration::from_secs(60),
            user_timeout: Duration::from_secs(15),
            ping_interval: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            dial_timeout: Duration::from_secs(5),
            open_budget: Duration::from_secs(10),
            linger: Duration::from_secs(5),
            window: MAX_WINDOW,
        }
    }
}
