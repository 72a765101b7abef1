"""Those tests of tests/hub/test_presence.py that write who is connected, on PostgreSQL."""

from hub.test_presence import (  # noqa: F401
    book,
    test_a_device_is_online_from_its_word_to_its_end,
    test_a_word_that_was_heard_before_changes_nothing,
    test_ten_thousand_connections_are_ten_transactions,
    test_the_end_of_a_connection_that_is_over_ends_no_later_one,
    test_who_is_quiet_for_long_is_offline_whatever_was_said,
    test_words_that_wait_together_are_taken_in_the_order_of_their_numbers,
)
