//! How much work strangers can cause.

use std::time::Duration;

/// Limits of a [`super::GuestEndpoint`]; what is over a limit is dropped with a log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestLimits {
    /// TLS handshakes a second, in the long run.
    pub handshakes_per_sec: u32,
    /// TLS handshakes at once after a quiet time.
    pub handshake_burst: u32,
    /// Connections that may be in their handshake or Bind at the same time.
    pub concurrent: usize,
    /// For the TLS handshake together with the first message.
    pub handshake_timeout: Duration,
    /// For each later message of a Bind.
    pub message_timeout: Duration,
    /// For making evidence; a hardware quote takes up to some seconds.
    pub evidence_timeout: Duration,
    /// For [`super::BindHandler::bind`].
    pub bind_timeout: Duration,
    /// Sessions of each service, agent and forward, that may exist at the same time.
    pub sessions: usize,
}

impl Default for GuestLimits {
    fn default() -> Self {
        Self {
            handshakes_per_sec: 20,
            handshake_burst: 60,
            concurrent: 16,
            handshake_timeout: Duration::from_secs(10),
            message_timeout: Duration::from_secs(30),
            evidence_timeout: Duration::from_secs(30),
            bind_timeout: Duration::from_secs(60),
            sessions: 64,
        }
    }
}
