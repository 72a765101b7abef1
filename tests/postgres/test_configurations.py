"""Those tests of tests/hub/test_configurations.py that ask the database something of their own, on PostgreSQL."""

from hub.test_configurations import bench as bench
from hub.test_configurations import (
    test_a_candidate_gets_the_configuration_of_the_version_beside_it_with_the_same_change as test_a_candidate_follows,
)
from hub.test_configurations import (
    test_a_configuration_that_fails_on_a_device_goes_back_and_the_old_one_stands as test_one_that_fails_goes_back,
)
from hub.test_configurations import (
    test_a_device_that_belongs_elsewhere_by_now_gets_its_part_when_the_revision_is_applied as test_one_is_applied,
)
from hub.test_configurations import (
    test_only_devices_whose_configuration_changes_take_part as test_only_devices_that_change_take_part,
)
from hub.test_configurations import (
    test_where_no_device_changes_a_revision_stands_at_once_and_new_devices_get_it as test_one_stands_at_once,
)

__all__ = [
    "bench",
    "test_a_candidate_follows",
    "test_one_is_applied",
    "test_one_stands_at_once",
    "test_one_that_fails_goes_back",
    "test_only_devices_that_change_take_part",
]
