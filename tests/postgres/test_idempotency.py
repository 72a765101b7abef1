"""Those tests of tests/hub/test_idempotency.py that ask the database something of their own, on PostgreSQL."""

from hub.test_idempotency import bench as bench
from hub.test_idempotency import client as client
from hub.test_idempotency import (
    test_a_request_that_is_broken_off_is_never_done_twice as test_a_request_that_is_broken_off,
)
from hub.test_idempotency import (
    test_no_more_requests_are_kept_than_the_settings_say,
    test_of_two_hubs_on_one_database_one_does_it,
    test_old_requests_are_swept,
    test_what_failed_before_it_changed_anything_is_tried_again,
)
from hub.test_idempotency import (
    test_the_same_request_again_has_no_second_effect_and_the_same_answer as test_the_same_request_again,
)
from hub.test_idempotency import token as token

__all__ = [
    "test_a_request_that_is_broken_off",
    "test_no_more_requests_are_kept_than_the_settings_say",
    "test_of_two_hubs_on_one_database_one_does_it",
    "test_old_requests_are_swept",
    "test_the_same_request_again",
    "test_what_failed_before_it_changed_anything_is_tried_again",
]
