//! Scenarios in which a pod on `peer-pods` can still be told from one on runc, with what is missing. They are told like the others and
//! their differences are printed; one that is the same on both fails until it is taken off this list.

const GAPS: &[(&str, &str)] = &[
    ("an_ephemeral_container_sees_its_target", "it joins the namespace of the pause container instead of its target's"),
];

/// What is missing for a scenario, if anything is known to be.
pub(super) fn of(scenario: &str) -> Option<&'static str> {
    GAPS.iter().find(|(name, _)| *name == scenario).map(|(_, missing)| *missing)
}
