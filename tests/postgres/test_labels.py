"""tests/hub/test_labels.py, and what reads its sums, with the store in PostgreSQL."""

from hub.test_label_figures import hub as hub
from hub.test_label_figures import (  # noqa: F401
    test_calibration_is_the_weighted_gap_per_bin,
    test_figures_of_classes_are_those_of_scikit_learn_with_the_weights,
    test_figures_of_numbers_are_those_of_scikit_learn_with_the_weights,
    test_parts_are_by_device_tag_day_profile_and_version,
)
from hub.test_label_watch import (  # noqa: F401
    built,
    test_a_change_of_concept_is_told_with_its_time_and_ends_when_it_ends,
    test_bounds_are_set_changed_and_removed_on_the_record,
)
from hub.test_labels import (  # noqa: F401
    test_a_correction_counts_and_the_history_stays,
    test_a_dry_run_says_the_same_and_keeps_nothing,
    test_a_label_is_corrected_after_its_sample_is_gone,
    test_a_label_that_comes_before_its_sample_waits_and_is_joined_once,
    test_any_order_of_samples_labels_and_corrections_gives_the_same,
    test_importing_the_same_again_changes_nothing,
    test_numbers_are_labelled_one_by_one_or_as_a_list_with_gaps,
)
