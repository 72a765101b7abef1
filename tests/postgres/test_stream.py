"""Those tests of tests/hub/test_stream.py that ask the database something of their own, on PostgreSQL."""

from hub.test_stream import hub as hub
from hub.test_stream import (
    test_filters_choose_kinds_and_subjects_in_the_past_and_in_the_present as test_filters_choose_kinds_and_subjects,
)
from hub.test_stream import test_nobody_hears_of_devices_outside_their_scope
from hub.test_stream import (
    test_whoever_is_further_behind_than_memory_reads_the_rest_from_the_database as test_whoever_is_further_behind,
)

__all__ = [
    "test_filters_choose_kinds_and_subjects",
    "test_nobody_hears_of_devices_outside_their_scope",
    "test_whoever_is_further_behind",
]
