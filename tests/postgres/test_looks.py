"""The tests of tests/hub/test_looks.py on PostgreSQL."""

from hub.test_looks import *  # noqa: F403
