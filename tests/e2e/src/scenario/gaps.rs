//! Scenarios in which a pod on `peer-pods` can still be told from one on runc, with what is missing. They are told like the others and
//! their differences are printed; one that is the same on both is named, so that it is taken off this list.

const GAPS: &[(&str, &str)] = &[
    ("a_termination_message_reaches_the_node", "the agent does not serve GetDiagnosticData yet"),
    ("a_command_that_may_not_be_run_fails_to_start", "the texts are libcontainer's, not runc's"),
    ("a_command_that_is_not_there_fails_to_start", "the texts are libcontainer's, not runc's"),
    ("the_default_seccomp_profile_refuses_what_it_lists", "the agent does not apply seccomp profiles yet"),
    ("a_seccomp_profile_of_the_node_is_obeyed", "the agent does not apply seccomp profiles yet"),
    ("an_ephemeral_container_sees_its_target", "it joins the namespace of the pause container instead of its target's"),
    ("a_volume_of_the_image_starts_with_its_content", "volumes of images begin empty"),
    ("port_forward_reaches_a_port_of_the_pod", "nothing carries local dials on the node to the pod VM yet"),
    ("a_pod_of_two_families_is_reached_on_both", "IPv6 is not carried to the pod VM yet"),
    ("an_unsafe_sysctl_is_refused", "the code is Internal where runc's is Unknown"),
];

/// What is missing for a scenario, if anything is known to be.
pub(super) fn of(scenario: &str) -> Option<&'static str> {
    GAPS.iter().find(|(name, _)| *name == scenario).map(|(_, missing)| *missing)
}
