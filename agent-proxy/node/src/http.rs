//! Just enough HTTP for a metrics scraper.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A scraper's request line and headers.
const REQUEST_LIMIT: u64 = 8 << 10;
const DEADLINE: Duration = Duration::from_secs(5);
const CONNECTION_LIMIT: usize = 16;

/// Answers `GET /metrics` with `text()`, everything else with 404, until dropped.
pub(crate) async fn serve(listener: TcpListener, text: impl Fn() -> String + Send + Sync + 'static) {
    let text = Arc::new(text);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTION_LIMIT => {
                    let text = Arc::clone(&text);
                    connections.spawn(async move {
                        // A scraper that is slow or gone tries again by itself.
                        let _ = timeout(DEADLINE, answer(stream, &*text)).await;
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "accepting a scraper");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(mut stream: TcpStream, text: &(impl Fn() -> String + ?Sized)) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut limited = (&mut stream).take(REQUEST_LIMIT);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if limited.read_buf(&mut request).await? == 0 {
            break;
        }
    }
    let (status, body) =
        if request.starts_with(b"GET /metrics ") { ("200 OK", text()) } else { ("404 Not Found", "see /metrics\n".to_owned()) };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metrics_are_found_and_nothing_else_is() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        let server = tokio::spawn(serve(listener, || "a 1\n".to_owned()));
        for (path, expected) in [("/metrics", "a 1\n"), ("/", "see /metrics\n")] {
            let mut stream = TcpStream::connect(address).await.expect("connect");
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("ask");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answer");
            assert!(answer.ends_with(expected), "{answer}");
        }
        server.abort();
    }
}
