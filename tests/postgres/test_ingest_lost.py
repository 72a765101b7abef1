"""The tests of tests/hub/test_ingest_lost.py on PostgreSQL."""

from hub.test_ingest_lost import *  # noqa: F403
