//! What happened in one schedule, or in many.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Counts of what was done and seen.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Schedules that were run.
    pub schedules: u64,
    /// Times that the engine was dropped in the middle of its work.
    pub kills: u64,
    /// Instances that the cloud has made.
    pub instances: u64,
    /// Calls of the cloud by what they were.
    pub calls: BTreeMap<&'static str, u64>,
    /// Faults by what they were.
    pub faults: BTreeMap<&'static str, u64>,
    /// States that claims and pod VMs were seen in.
    pub states: BTreeSet<&'static str>,
}

impl Report {
    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.schedules += other.schedules;
        self.kills += other.kills;
        self.instances += other.instances;
        for (mine, theirs) in [(&mut self.calls, &other.calls), (&mut self.faults, &other.faults)] {
            for (name, count) in theirs {
                *mine.entry(name).or_default() += count;
            }
        }
        self.states.extend(&other.states);
    }

    pub(crate) fn fault(&mut self, name: &'static str) {
        *self.faults.entry(name).or_default() += 1;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedules, kills, instances, calls, faults, states } = self;
        let list = |counts: &BTreeMap<&str, u64>| {
            let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
            counts.join(", ")
        };
        writeln!(f, "{schedules} schedules, {kills} kills of the engine, {instances} instances")?;
        writeln!(f, "calls of the cloud: {}", list(calls))?;
        writeln!(f, "faults: {}", list(faults))?;
        let states: Vec<&str> = states.iter().copied().collect();
        writeln!(f, "states reached: {}", states.join(", "))?;
        write!(f, "0 leaked, 0 doubled, 0 taken from a claim, 0 of others deleted")
    }
}
