"""The tests of tests/hub/test_registry.py on PostgreSQL."""

from hub.test_registry import *  # noqa: F403

del globals()["test_everything_is_there_after_a_restart"]  # it opens the file of SQLite again
