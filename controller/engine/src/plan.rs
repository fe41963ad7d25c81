//! What to do next, decided from records, observations and a clock value alone.
//!
//! The plan for a state is the same every time. Carrying out any part of it, once or twice, and planning again leads to the same end:
//! every open claim has its pod VM or has failed, pools are full, and nothing exists that no open claim or pool wants.
//! One plan writes each record at most once, so that its writes may be carried out in any order.

mod claims;
mod launches;
mod matching;
mod pod_vms;
mod pools;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::time::Duration;

use peerpods_cloud_api::{InstanceId, OwnerTag};
use peerpods_controller_api::{Record, RecordKey};

use crate::records::Index;
use crate::{Buckets, Call, Observed, Records, Timing};
use matching::{Catalogue, match_up};

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Everything stored.
    pub records: &'a Records,
    /// Everything seen.
    pub observed: &'a Observed,
    /// Whose instances are ours.
    pub owner: &'a OwnerTag,
    /// Intervals and limits.
    pub timing: &'a Timing,
    /// Time since the driver's start.
    pub now: Duration,
    /// Until then no launch is recorded, so that claims that come together are served by one.
    pub hold: Option<Duration>,
    /// A random number, for the tokens of launches.
    pub seed: u128,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Records to write, each with a word for the log.
    pub writes: Vec<(Write, &'static str)>,
    /// Calls to make.
    pub calls: Vec<Call>,
    /// When to plan again although nothing has happened.
    pub wake: Option<Duration>,
}

/// A change of one record.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a plan has few writes and is dropped at once")]
pub enum Write {
    /// Create or replace it.
    Put(Record),
    /// Remove it.
    Remove(RecordKey),
}

/// Makes the plan.
pub fn plan(input: &Input<'_>) -> Plan {
    let mut planner = Planner {
        input: *input,
        index: input.records.index(),
        plan: Plan::default(),
        wants_listing: input.observed.listed.is_none(),
        is_urgent: false,
        advancing: HashSet::new(),
        buckets: input.observed.buckets.clone(),
    };
    let mut catalogue = Catalogue::new(input.records, input.observed, input.now);
    let mut matching = match_up(input.records, &planner.index, input.observed, &mut catalogue);
    planner.plan_claims(&matching);
    planner.plan_pod_vms(&matching);
    let kept = planner.plan_pools(&mut matching, &mut catalogue);
    planner.plan_launches(&mut matching, &kept);
    planner.plan_unowned();
    planner.plan_listing();
    planner.plan
}

struct Planner<'a> {
    input: Input<'a>,
    index: Index<'a>,
    plan: Plan,
    /// A listing is needed before something can be decided.
    wants_listing: bool,
    /// Something is expected to change soon.
    is_urgent: bool,
    /// Pod VMs that nobody has and whose records are written already in this plan.
    advancing: HashSet<InstanceId>,
    /// What the cloud's limits leave to the rest of this plan.
    buckets: Buckets,
}

impl Planner<'_> {
    fn put(&mut self, record: Record, why: &'static str) {
        self.plan.writes.push((Write::Put(record), why));
    }

    fn remove(&mut self, key: RecordKey, why: &'static str) {
        self.plan.writes.push((Write::Remove(key), why));
    }

    /// Makes a call, unless it is under way, must wait, or too many are under way.
    fn call(&mut self, call: Call) {
        let observed = self.input.observed;
        if observed.in_flight.contains(&call) || self.plan.calls.contains(&call) {
            return;
        }
        if let Some(pause) = observed.pauses.get(&call).filter(|pause| pause.until > self.input.now) {
            return self.wake_at(pause.until);
        }
        let count = self.input.records.count_of(&call);
        let due = self.buckets.due(&call, count);
        if due > self.input.now {
            return self.wake_at(due);
        }
        if observed.in_flight.len() + self.plan.calls.len() < self.input.timing.max_calls {
            self.buckets.take(&call, count, self.input.now);
            self.plan.calls.push(call);
        }
    }

    fn wake_at(&mut self, at: Duration) {
        self.plan.wake = Some(self.plan.wake.map_or(at, |wake| wake.min(at)));
    }

    fn plan_listing(&mut self) {
        let observed = self.input.observed;
        let interval = match (self.is_urgent, self.wants_listing) {
            (_, true) if observed.listed.is_none() => Duration::ZERO,
            (true, _) | (_, true) => self.input.timing.poll(observed.looks),
            (false, false) => self.input.timing.sweep,
        };
        let interval = interval.max(self.buckets.listing_interval());
        let due = observed.list_ended + interval;
        if due <= self.input.now || observed.listed.is_none() { self.call(Call::List) } else { self.wake_at(due) }
    }
}
