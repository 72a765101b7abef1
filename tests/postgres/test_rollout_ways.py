"""Rollouts on PostgreSQL: what tests/hub/test_rollout_ways.py asks of SQLite."""

from hub.test_rollout_ways import (  # noqa: F401
    fleet,
    test_a_device_that_comes_later_joins_once_and_counts,
    test_a_device_that_failed_is_tried_again_so_often_and_after_a_pause,
    test_a_fleet_rollback_takes_everybody_back_and_ends_when_they_are,
    test_a_stage_waits_for_somebody_elses_yes,
    test_devices_begin_inside_their_window_by_their_own_clock,
    test_devices_of_another_rollout_are_taken_over_where_the_plan_says_so,
    test_no_more_devices_begin_than_the_rate_allows,
    test_what_devices_would_refuse_is_signed_again_first_where_the_hub_can,
    test_what_is_more_than_a_slice_is_done_in_the_next_turns,
)
