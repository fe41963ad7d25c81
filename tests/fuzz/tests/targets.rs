//! Every target for 20 seconds, two at once.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Mutex;
use std::time::Duration;

/// As long as every run of the tests can bear.
const TIME: Duration = Duration::from_secs(20);

#[test]
fn no_parser_panics_or_lingers() {
    let seed = fastrand::u64(..);
    let targets = Mutex::new(peerpods_fuzz::targets());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(target) = targets.lock().unwrap().pop() else { return };
                    match target.fuzz(seed, TIME) {
                        Ok(runs) => println!("{}: {} inputs, slowest {:?}", target.name, runs.inputs, runs.slowest),
                        Err(text) => failures.lock().unwrap().push(text),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
