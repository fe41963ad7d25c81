//! Stages: what runs, how long it took, and the table at the end.

use std::process::{Command, Stdio};
use std::time::SystemTime;

/// Collects the duration of each stage of a job.
pub(crate) struct Stages {
    done: Vec<(String, f64)>,
}

impl Stages {
    pub(crate) fn new() -> Self {
        Self { done: Vec::new() }
    }

    /// Runs one stage, printing its name before and its duration after.
    pub(crate) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        println!("==> {name}");
        let begin = SystemTime::now();
        let result = work();
        let secs = begin.elapsed().unwrap_or_default().as_secs_f64();
        println!("    {name}: {secs:.1} s{}", if result.is_ok() { "" } else { " (failed)" });
        self.done.push((name.to_owned(), secs));
        result
    }

    /// Prints minutes per stage.
    pub(crate) fn print_table(&self) {
        println!("\nminutes  stage");
        for (name, secs) in &self.done {
            println!("{:7.1}  {name}", secs / 60.0);
        }
        println!("{:7.1}  total", self.done.iter().map(|(_, secs)| secs).sum::<f64>() / 60.0);
    }
}

/// Runs a program with the terminal as its output; a failure names the command line.
pub(crate) fn run(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|e| format!("cannot start {}: {e}", line(command)))?;
    if status.success() { Ok(()) } else { Err(format!("{} failed: {status}", line(command))) }
}

/// Runs a program and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let out = command.stderr(Stdio::inherit()).output().map_err(|e| format!("cannot start {}: {e}", line(command)))?;
    if !out.status.success() {
        return Err(format!("{} failed: {}", line(command), out.status));
    }
    String::from_utf8(out.stdout).map_err(|_| format!("{} printed bytes that are not UTF-8", line(command)))
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
