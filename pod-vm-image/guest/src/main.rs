//! The guest: one binary, three roles: init, agent, runner.

fn main() {}
