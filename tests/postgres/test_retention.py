"""The tests of tests/hub/test_retention.py on PostgreSQL."""

from hub.test_retention import *  # noqa: F403
