"""The tests of tests/hub/test_ingest_hostile.py on PostgreSQL."""

from hub.test_ingest_hostile import *  # noqa: F403
