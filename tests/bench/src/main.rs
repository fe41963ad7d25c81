//! Benchmarks against the budgets, each with its baseline.

fn main() {}
