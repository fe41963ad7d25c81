//! The controller: wiring, redb Journal, binder CA, metrics.

fn main() {}
