//! The cases by what they are about.

mod cancel;
mod delete;
mod launch;
mod offer;
mod read;
mod refuse;
mod token;

use crate::Case;

macro_rules! cases {
    ($($room:ident: $($case:ident),+;)+) => {
        /// All of them.
        pub const CASES: &[Case] = &[$($((stringify!($case), |trial| Box::pin($room::$case(trial)))),+),+];
    };
}

cases! {
    offer:
        verify_says_that_all_is_well,
        verify_changes_nothing,
        types_are_offered,
        types_have_different_names,
        types_have_sizes,
        types_stay_the_same,
        types_have_the_tee_that_is_launched,
        limits_let_something_pass;
    launch:
        one_instance_is_launched,
        three_instances_have_three_ids,
        the_largest_batch_is_launched,
        instances_carry_the_owner,
        instances_carry_the_token,
        a_new_instance_is_pending_or_running,
        user_data_may_be_empty,
        user_data_may_be_as_long_as_allowed,
        user_data_may_be_any_bytes,
        an_owner_may_have_every_allowed_character,
        an_owner_may_be_as_long_as_allowed,
        a_token_may_have_every_allowed_character,
        a_token_may_be_as_long_as_allowed,
        two_launches_at_once_are_two;
    token:
        the_same_request_gives_the_same_instances,
        the_same_request_of_another_opening_gives_the_same,
        the_same_request_at_once_launches_once,
        ten_of_the_same_at_once_launch_once,
        the_same_request_later_gives_the_same,
        a_deleted_instance_does_not_come_back,
        another_token_gives_other_instances,
        a_token_with_other_user_data_is_refused,
        a_token_with_a_larger_count_is_refused,
        a_token_with_a_smaller_count_is_refused,
        a_token_with_another_type_is_refused,
        a_token_of_another_owner_is_refused,
        a_refused_token_keeps_its_instances,
        a_refused_request_does_not_use_its_token_up;
    refuse:
        none_are_refused,
        too_many_are_refused,
        too_much_user_data_is_refused,
        an_unknown_type_is_refused,
        an_unknown_zone_is_refused,
        an_unknown_image_is_refused,
        a_tee_that_the_type_has_not_is_refused,
        a_refusal_does_not_repeat_user_data;
    read:
        a_launched_instance_can_be_read,
        an_instance_comes_to_run_and_has_an_address,
        running_instances_have_different_addresses,
        a_running_instance_stays_what_it_is,
        an_unknown_instance_is_not_found,
        a_strange_id_is_not_found,
        another_opening_reads_the_same,
        nothing_is_listed_for_an_owner_of_nothing,
        a_launched_instance_is_listed,
        a_batch_is_listed_whole,
        owners_see_their_own_alone,
        an_owner_whose_name_starts_another_sees_its_own_alone,
        owners_differ_by_case,
        a_listing_agrees_with_a_read,
        another_opening_lists_the_same,
        listings_during_a_launch_show_nothing_twice;
    delete:
        a_deletion_is_accepted_and_the_instance_goes,
        a_deletion_again_is_no_error,
        a_gone_instance_is_not_found,
        an_unknown_instance_cannot_be_deleted,
        a_strange_id_deletes_nothing,
        a_deleted_instance_never_runs_again,
        a_deleted_instance_is_listed_as_such_or_not_at_all,
        the_rest_of_a_batch_stays,
        five_deletions_at_once_are_one,
        an_instance_may_be_deleted_at_once,
        another_opening_deletes_it,
        one_owners_deletion_leaves_the_other_ones,
        a_launch_after_a_deletion_is_another_one;
    cancel:
        a_launch_that_is_dropped_is_found_by_its_token,
        a_deletion_that_is_dropped_can_be_repeated,
        a_read_that_is_dropped_harms_nothing;
}
