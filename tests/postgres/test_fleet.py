"""The tests of tests/hub/test_fleet.py on PostgreSQL."""

from hub.test_fleet import *  # noqa: F403
