"""Of the tests of tests/hub/test_retrain_triggers.py those that read and write most, on PostgreSQL."""

from hub.test_retrain_triggers import *  # noqa: F403

_CHOSEN = (
    "test_alerts_during_a_run_and_in_the_pause_after_it_wait_and_are_not_lost",
    "test_a_plan_has_one_run_at_a_time_and_none_when_it_is_stopped",
)
for _name in [name for name in globals() if name.startswith("test_")]:
    if _name not in _CHOSEN:
        del globals()[_name]
