"""Those tests of tests/hub/test_commands.py that ask the database something of their own, on PostgreSQL."""

from hub.test_commands import bench as bench
from hub.test_commands import (
    test_a_device_for_which_too_much_waits_refuses_the_whole_question as test_too_much_waits,
)
from hub.test_commands import test_many_are_asked_at_once_one_command_each_under_one_name as test_many_are_asked_at_once
from hub.test_commands import (
    test_what_a_device_brings_is_kept_by_its_digest_and_had_unpacked as test_what_a_device_brings_is_kept,
)
from hub.test_commands import (
    test_what_is_cancelled_is_not_sent_again_and_a_device_that_did_it_has_the_last_word as test_one_is_cancelled,
)

__all__ = [
    "bench",
    "test_many_are_asked_at_once",
    "test_one_is_cancelled",
    "test_too_much_waits",
    "test_what_a_device_brings_is_kept",
]
