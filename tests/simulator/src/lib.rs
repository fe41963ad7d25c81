//! The engine against a modelled cloud in virtual time.
//!
//! A schedule is one seed: nodes that claim and release, a cloud that is slow, full, forgetful and wrong in the ways that clouds are, a
//! journal that fails, and a controller that is dropped at its k-th poll, again and again. Whatever happens, no instance may be leaked,
//! doubled or taken from a claim, nothing of others may be touched, and once the faults end nothing may be left. The same seed gives the
//! same schedule.
//!
//! A burst is many pods at once on a cloud with EC2's limits, where nothing fails.

mod account;
mod burst;
mod cloud;
mod journal;
mod offer;
mod report;
mod schedule;

pub use burst::{Burst, burst, one_call_each};
pub use report::Report;
pub use schedule::{run, run_killed_at};
