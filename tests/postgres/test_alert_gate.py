"""Those tests of tests/hub/test_alert_gate.py that read how alerts ended, on PostgreSQL."""

from hub.test_alert_gate import (  # noqa: F401
    fleet,
    test_an_alert_that_became_calm_by_itself_is_over_and_not_stated,
    test_an_alert_that_somebody_resolved_lets_the_next_group_open_and_is_stated,
    test_who_put_an_alert_off_is_named_with_it,
)
