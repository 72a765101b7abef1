"""The tests of tests/hub/test_ingest.py on PostgreSQL."""

from hub.test_ingest import *  # noqa: F403
