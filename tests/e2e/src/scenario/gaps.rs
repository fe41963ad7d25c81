//! Scenarios in which a pod on `peer-pods` can still be told from one on runc, with what is missing. They are told like the others and
//! their differences are printed; one that is the same on both fails until it is taken off this list.

const GAPS: &[(&str, &str)] = &[
    ("an_ephemeral_container_sees_its_target", "it joins the namespace of the pause container instead of its target's"),
    ("a_pod_of_two_families_is_reached_on_both", "IPv6 is not carried to the pod VM yet"),
];

/// What is missing for a scenario, if anything is known to be.
pub(super) fn of(scenario: &str) -> Option<&'static str> {
    GAPS.iter().find(|(name, _)| *name == scenario).map(|(_, missing)| *missing)
}
