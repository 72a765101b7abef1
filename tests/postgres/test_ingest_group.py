"""The tests of tests/hub/test_ingest_group.py on PostgreSQL."""

from hub.test_ingest_group import *  # noqa: F403

del globals()["test_a_batch_that_cannot_be_stored_does_not_keep_the_others_from_it"]  # it breaks SQLite by a trigger
