"""The tests of tests/hub/test_among.py on PostgreSQL."""

from hub.test_among import *  # noqa: F403
