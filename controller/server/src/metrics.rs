//! `/metrics`, for Prometheus.
//!
//! Everything is counted from the engine's published totals when it is asked for; nothing is kept here.
//! There is no TLS and no authentication: bind it where only the scraper reaches it.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use peerpods_engine::Totals;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::http::{self, Answer, plain};

/// Listens, and says where.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(address).await?;
    tracing::info!(address = %listener.local_addr()?, "serving metrics");
    Ok(listener)
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, totals: watch::Receiver<Totals>) {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(EngineTotals(totals)));
    let registry = Arc::new(registry);
    http::serve(listener, move |request: Request<Incoming>| {
        let response = respond(&request, &registry);
        async move { response }
    })
    .await;
}

fn respond(request: &Request<Incoming>, registry: &Registry) -> Answer {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            match prometheus_client::encoding::text::encode(&mut text, registry) {
                Ok(()) => {
                    let mut response = plain(StatusCode::OK, text);
                    let kind = hyper::header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
                    response.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
                    response
                }
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        (&Method::GET, _) => plain(StatusCode::NOT_FOUND, "try /metrics\n"),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"),
    }
}

#[derive(Debug)]
struct EngineTotals(watch::Receiver<Totals>);

impl Collector for EngineTotals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let totals = self.0.borrow().clone();
        let mut gauges = |name, help, values: Vec<(&'static str, &'static str, u64)>| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (label, value, count) in values {
                ConstGauge::new(count).encode(metric.encode_family(&[(label, value)])?)?;
            }
            Ok(())
        };
        let claims = ["open", "failed", "released"].map(|status| ("status", status, count(&totals.claims, status)));
        gauges("peerpods_claims", "Claims by status", claims.to_vec())?;
        let states = ["intended", "launching", "running", "claimed", "deleting"];
        let pod_vms = states.map(|state| ("state", state, count(&totals.pod_vms, state)));
        gauges("peerpods_pod_vms", "Pod VMs by state", pod_vms.to_vec())?;

        let unowned = encoder.encode_descriptor(
            "peerpods_unowned_instances",
            "Instances with our owner tag that no record accounts for; they are being deleted",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(totals.unowned).encode(unowned)?;

        let mut calls = encoder.encode_descriptor("peerpods_provider_calls", "Calls of the provider", None, MetricType::Counter)?;
        for (result, counts) in [("ok", &totals.calls), ("error", &totals.call_failures)] {
            for (call, count) in counts {
                ConstCounter::new(*count).encode(calls.encode_family(&[("call", *call), ("result", result)])?)?;
            }
        }
        let mut writes = encoder.encode_descriptor("peerpods_journal_writes", "Writes of the Journal", None, MetricType::Counter)?;
        for (result, count) in [("ok", totals.journal_writes.saturating_sub(totals.journal_failures)), ("error", totals.journal_failures)] {
            ConstCounter::new(count).encode(writes.encode_family(&[("result", result)])?)?;
        }
        Ok(())
    }
}

fn count(counts: &std::collections::BTreeMap<&'static str, u64>, name: &str) -> u64 {
    counts.get(name).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::task::JoinSet;

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("is answered");
        answer
    }

    #[tokio::test]
    async fn totals_are_served_and_nothing_else() {
        let totals = Totals { unowned: 3, pod_vms: [("claimed", 2)].into(), calls: [("launch", 5)].into(), ..Totals::default() };
        let (_sender, totals) = watch::channel(totals);
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("binds");
        let address = listener.local_addr().expect("has one");
        let mut server = JoinSet::new();
        server.spawn(serve(listener, totals));

        let answer = ask(address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for line in [
            "peerpods_pod_vms{state=\"claimed\"} 2",
            "peerpods_pod_vms{state=\"deleting\"} 0",
            "peerpods_unowned_instances 3",
            "peerpods_provider_calls_total{call=\"launch\",result=\"ok\"} 5",
            "# EOF",
        ] {
            assert!(answer.contains(line), "{line} is not in:\n{answer}");
        }
        let answer = ask(address, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        let answer = ask(address, "POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000));
        let mut stream = TcpStream::connect(address).await.expect("connects");
        let _ = stream.write_all(long.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "a head beyond the limit is not read");
    }
}
