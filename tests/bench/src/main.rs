//! Benchmarks against the budgets of the design; each figure stands beside a baseline measured in the same run.

mod burst;
mod cri;
mod decrypt;
mod engine;
mod figure;
mod keys;
mod memory;
mod pull;
mod start;
mod tunnel;
mod warm;

use anyhow::{Result, bail};

const NAMES: &[&str] = &["tunnel", "start", "memory", "pull", "cri", "engine", "burst", "warm", "keys", "decrypt"];

fn main() -> Result<()> {
    let mut is_json = false;
    let mut chosen = Vec::new();
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--json" => is_json = true,
            name if NAMES.contains(&name) => chosen.push(name.to_owned()),
            other => bail!("unknown benchmark {other}; benchmarks are {}", NAMES.join(", ")),
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for name in NAMES.iter().filter(|name| chosen.is_empty() || chosen.iter().any(|c| c == *name)) {
        let figures = match *name {
            "tunnel" => runtime.block_on(tunnel::run())?,
            "start" => runtime.block_on(start::run())?,
            "memory" => runtime.block_on(memory::run())?,
            "warm" => runtime.block_on(warm::run())?,
            "cri" => runtime.block_on(cri::run())?,
            "engine" => engine::run()?,
            "burst" => burst::run()?,
            "keys" => runtime.block_on(keys::run())?,
            "decrypt" => runtime.block_on(decrypt::run())?,
            _ => runtime.block_on(pull::run())?,
        };
        for figure in figures {
            figure.print(is_json);
        }
    }
    Ok(())
}
