"""Dry runs and gates on PostgreSQL: some of what tests/hub asks of SQLite."""

from hub.test_alert_gate import (  # noqa: F401
    fleet,
    test_an_alert_that_somebody_has_seen_and_not_ended_still_counts,
    test_an_alert_while_it_soaks_counts_at_once,
)
from hub.test_rollout_preview import (  # noqa: F401
    test_bytes_are_counted_from_what_each_device_has,
    test_devices_of_other_rollouts_are_counted_and_the_rule_is_said,
    test_of_a_large_group_the_first_ids_stand_for_the_rest,
    test_times_rest_on_what_earlier_executions_of_the_module_took_and_say_so,
    test_windows_count_where_each_device_is_and_a_zone_that_is_none_is_named,
    world,
)
from hub.test_rollout_transfers import (  # noqa: F401
    built,
    test_a_patch_counts_where_it_is_built_and_smaller_and_patches_are_offered,
)
