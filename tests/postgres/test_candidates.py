"""Candidates on PostgreSQL: what tests/hub/test_candidates.py asks of SQLite."""

from hub.test_candidates import (  # noqa: F401
    lab,
    test_a_dropped_candidate_goes_from_every_device,
    test_a_newer_main_version_ends_an_older_candidate_and_keeps_a_newer_one,
    test_a_promoted_candidate_takes_the_main_version_s_place,
    test_an_arm_by_device_is_the_main_version_of_its_share,
    test_another_share_reaches_every_device_and_those_to_come,
    test_lists_come_newest_first_and_in_pages,
    test_the_report_sums_what_devices_count,
)
