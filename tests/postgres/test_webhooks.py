"""Of the tests of tests/hub/test_webhooks.py those that read and write most, on PostgreSQL."""

from hub.test_webhooks import *  # noqa: F403

_CHOSEN = (
    "test_events_arrive_in_order_signed_and_as_cloud_events",
    "test_a_message_that_is_refused_is_dead_after_some_attempts_and_can_be_sent_once_more",
    "test_a_paused_webhook_gets_what_waited_unless_it_is_skipped",
    "test_a_webhook_that_is_deleted_leaves_nothing",
)
for _name in [name for name in globals() if name.startswith("test_")]:
    if _name not in _CHOSEN:
        del globals()[_name]
