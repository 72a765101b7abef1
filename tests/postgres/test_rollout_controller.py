"""The tests of tests/hub/test_rollout_controller.py on PostgreSQL."""

from hub.test_rollout_controller import *  # noqa: F403

del globals()["test_a_report_that_could_not_be_acted_on_counts_with_the_next_tick"]  # it breaks SQLite by a trigger
