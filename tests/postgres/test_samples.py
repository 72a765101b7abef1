"""The tests of tests/hub/test_samples.py on PostgreSQL."""

from hub.test_samples import *  # noqa: F403
