//! From nothing to a key: attestation with a relying party and release of a resource, alone and sixteen at once.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_e2e::{Level, RelyingParty, TeeUnderTest, World, WorldOptions};
use peerpods_key_broker::{Attester, BoxError, KeyBroker, KeyBrokerConfig, ResourceUri};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::figure::{Budget, Figure, percentile};

/// How often a key is fetched, all callers together.
const ROUNDS: usize = 320;

/// Evidence that costs nothing: what is left is the protocol.
struct Sample;

#[async_trait]
impl Attester for Sample {
    fn tee(&self) -> String {
        "sample".to_owned()
    }

    async fn evidence(&self, report_data: [u8; 48]) -> Result<Value, BoxError> {
        Ok(json!({ "svn": "1", "report_data": STANDARD.encode(report_data) }))
    }
}

/// Milliseconds of every call.
struct Times {
    attested: Vec<f64>,
    with_token: Vec<f64>,
}

/// One relying party, in its own process; clients here.
pub(crate) async fn run() -> Result<Vec<Figure>> {
    let world = World::start(&WorldOptions::new(Level::Sandbox))?;
    let party = RelyingParty::start(&world, TeeUnderTest::Sample)?;
    party.set_resource(&world, "default/key/1", &[7; 32])?;
    let initdata = party.initdata(&world, "package agent_policy\n")?;
    party.release_to(&world, &initdata)?;
    let mut config = KeyBrokerConfig::new(party.url());
    config.certificate_pem = Some(party.certificate()?);
    config.initdata = Some(initdata);
    let mut figures = Vec::new();
    for at_once in [1, 16] {
        let config = config.clone();
        let mut times = world.netns().run(move || -> Result<Times> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(measure(config, at_once))
        })??;
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            figures.push(Figure {
                name: format!("attestation and release of a key, {at_once} at once, {name} of {ROUNDS}"),
                value: percentile(&mut times.attested, share),
                unit: "ms",
                baseline: "the same key once more, with the token".to_owned(),
                baseline_value: percentile(&mut times.with_token, share),
                budget: Budget::None,
            });
        }
    }
    Ok(figures)
}

async fn measure(config: KeyBrokerConfig, at_once: usize) -> Result<Times> {
    let mut callers = JoinSet::new();
    for _ in 0..at_once {
        let config = config.clone();
        callers.spawn(async move {
            let uri = ResourceUri::new("default", "key", "1").context("a URI")?;
            let mut times = Times { attested: Vec::new(), with_token: Vec::new() };
            for _ in 0..ROUNDS / at_once {
                // Anew, so that nothing is left of the last attestation: key, connection, token.
                let broker = KeyBroker::new(config.clone(), Arc::new(Sample))?;
                for samples in [&mut times.attested, &mut times.with_token] {
                    let begin = Instant::now();
                    broker.resource(&uri).await?;
                    samples.push(begin.elapsed().as_secs_f64() * 1000.0);
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Times { attested: Vec::new(), with_token: Vec::new() };
    while let Some(times) = callers.join_next().await {
        let times = times??;
        all.attested.extend(times.attested);
        all.with_token.extend(times.with_token);
    }
    Ok(all)
}
