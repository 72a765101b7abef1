"""Of the tests of tests/hub/test_alerts.py those that read and write most, on PostgreSQL."""

from hub.test_alerts import *  # noqa: F403

_CHOSEN = (
    "test_a_drifting_fleet_is_one_alert_with_each_devices_share",
    "test_missing_values_are_a_quality_alert_and_no_drift",
)
for _name in [name for name in globals() if name.startswith("test_")]:
    if _name not in _CHOSEN:
        del globals()[_name]
