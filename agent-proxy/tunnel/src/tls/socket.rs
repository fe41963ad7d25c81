//! TCP options of the guest channel.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Keepalive probes that may stay unanswered. `TCP_USER_TIMEOUT` overrides the count while it is set.
const KEEPALIVE_PROBES: u32 = 3;

/// Connects; the kernel picks a source port, which is not `not_from`: a firewall or load balancer that has lost or poisoned
/// its entry for the old flow must not see the new connection as a part of it.
pub(crate) async fn dial(addr: SocketAddr, user_timeout: Duration, not_from: Option<u16>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    // Held until the second one is connected, so that its port is taken.
    let stream = match not_from {
        Some(port) if stream.local_addr()?.port() == port => TcpStream::connect(addr).await?,
        _ => stream,
    };
    prepare(&stream, user_timeout)?;
    Ok(stream)
}

/// No delay, and a limit for how long a dead peer goes unnoticed.
pub(crate) fn prepare(stream: &TcpStream, user_timeout: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let millis = u32::try_from(user_timeout.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, millis)?;
    sockopt::set_socket_keepalive(stream, true)?;
    let interval = (user_timeout / KEEPALIVE_PROBES).max(Duration::from_secs(1));
    sockopt::set_tcp_keepidle(stream, interval)?;
    sockopt::set_tcp_keepintvl(stream, interval)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}
