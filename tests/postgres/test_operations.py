"""Those tests of tests/hub/test_operations.py that ask the database something of their own, on PostgreSQL."""

from hub.test_operations import (
    test_a_cancellation_reaches_the_process_that_is_at_it,
    test_an_end_is_an_end,
    test_what_another_process_is_at_goes_on_until_it_is_silent,
    test_what_has_ended_is_forgotten_after_a_while,
)

__all__ = [
    "test_a_cancellation_reaches_the_process_that_is_at_it",
    "test_an_end_is_an_end",
    "test_what_another_process_is_at_goes_on_until_it_is_silent",
    "test_what_has_ended_is_forgotten_after_a_while",
]
