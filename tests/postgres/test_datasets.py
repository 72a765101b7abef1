"""Of the tests of tests/hub/test_datasets.py those that read and write most, on PostgreSQL."""

from hub.test_datasets import *  # noqa: F403

_CHOSEN = (
    "test_the_same_rows_give_the_same_digest_and_a_new_label_another",
    "test_what_is_asked_for_narrows_the_rows",
    "test_a_data_set_stays_while_a_model_names_it",
    "test_a_sweep_leaves_the_files_of_data_sets",
)
for _name in [name for name in globals() if name.startswith("test_")]:
    if _name not in _CHOSEN:
        del globals()[_name]
