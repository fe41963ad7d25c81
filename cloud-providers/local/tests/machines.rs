//! Real machines, each test in a network namespace of its own.
fn main() {}
