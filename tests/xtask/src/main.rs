//! cargo xtask: demo, test, image, bench, soak, check.

fn main() {}
