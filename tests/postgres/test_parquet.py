"""Of the tests of tests/hub/test_parquet.py those that read and write most, on PostgreSQL."""

from hub.test_parquet import *  # noqa: F403

_CHOSEN = (
    "test_a_long_export_comes_in_pieces_with_a_row_group_per_page",
    "test_windows_are_cells_beside_their_reference",
)
for _name in [name for name in globals() if name.startswith("test_")]:
    if _name not in _CHOSEN:
        del globals()[_name]
