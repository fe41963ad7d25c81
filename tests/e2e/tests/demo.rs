//! The demo's own claim that nothing is left, checked against the kernel.
//!
//! A test binary of its own: nothing else may make links or mounts while it runs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use peerpods_e2e::{Leftovers, binaries_folder};

#[test]
fn the_demo_leaves_nothing_behind_and_says_so() {
    // One after the other: each must find the machine as it leaves it.
    let plain = ["hello from a pod VM", "  phase"];
    let aws = [plain[0], plain[1], "RunInstances", "the account has 0 instances, 0 volumes"];
    for (arguments, expected) in [(&[][..], &["the recipe of the sauce", "refused:"][..]), (&["--plain"], &plain), (&["--aws"], &aws)] {
        let before = Leftovers::now().unwrap();
        let out = Command::new(binaries_folder().unwrap().join("peerpods-demo")).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        let left = Leftovers::now().unwrap().since(&before);
        println!("{text}{}", String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "the demo {arguments:?} failed: {}", out.status);
        assert!(left.is_empty(), "the kernel says: {left}");
        assert_eq!(text.lines().last(), Some("nothing left: 0 processes, 0 links, 0 netns, 0 mounts, 0 cgroups"));
        for part in expected {
            assert!(text.contains(part), "the demo {arguments:?} does not say {part:?}");
        }
    }
}
