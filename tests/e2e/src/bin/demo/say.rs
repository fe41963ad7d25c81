//! How the demo tells what it does: a line for each phase, with how long it took.

use std::io::Write as _;
use std::time::SystemTime;

use anyhow::{Context as _, Result};

pub(crate) fn show(bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        println!("    | {line}");
    }
}

pub(crate) fn phase<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = announce(what);
    let result = work().with_context(|| what.to_owned());
    done(begin);
    result
}

pub(crate) async fn timed<T, E>(what: &str, work: impl Future<Output = Result<T, E>>) -> Result<T>
where
    Result<T, E>: anyhow::Context<T, E>,
{
    let begin = announce(what);
    let result = work.await.with_context(|| what.to_owned());
    done(begin);
    result
}

fn announce(what: &str) -> SystemTime {
    print!("  {what} ... ");
    let _ = std::io::stdout().flush();
    SystemTime::now()
}

fn done(begin: SystemTime) {
    println!("{} ms", begin.elapsed().unwrap_or_default().as_millis());
}
