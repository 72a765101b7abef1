"""Labels as they are sent in, and what became of them: the API's types, and the check of a single row. Pure."""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec

from cloud_hub.bounds import Limit, RowId
from cloud_hub.labels.book import Value
from cloud_hub.labels.outputs import MAX_ELEMENTS, LabelError

MAX_ROWS: Final = 1000  # of one request
MAX_TEXT: Final = 200
MAX_WEIGHT: Final = 1e6
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Name = Annotated[str, msgspec.Meta(max_length=63)]


class NewLabel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The right answer to one prediction: a class by name or place, a number, or a list with one for each element.

    `device` and `module` are needed where several have made a prediction of this id; without `output` it is of the
    module's main one. `at` is when it was given, in seconds since the epoch (null: now): the newest counts. `weight`
    is how much it counts beside other labels.
    """

    prediction_id: _Id
    label: Value
    device: _Name = ""
    module: _Name = ""
    output: Annotated[str, msgspec.Meta(max_length=200)] = ""
    at: float | None = None
    weight: float = 1.0


class NewLabels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Labels to keep, in the order in which they were given. With `dry_run` nothing is kept."""

    labels: Annotated[tuple[NewLabel, ...], msgspec.Meta(min_length=1, max_length=MAX_ROWS)]
    dry_run: bool = False


class RefusedLabel(msgspec.Struct, frozen=True):
    """A row that was not kept: its place among those sent, from 0, and why."""

    row: int
    key: str
    text: str


class LabelsTaken(msgspec.Struct, frozen=True):
    """What became of the rows. The first five numbers and the refused add up to all.

    `accepted` are new and of a prediction that is here, `waiting` are kept until their prediction comes, `corrected`
    took the place of another label, `unchanged` said what was known, `older` were given before the one that counts.
    """

    accepted: int = 0
    waiting: int = 0
    corrected: int = 0
    unchanged: int = 0
    older: int = 0
    refused: tuple[RefusedLabel, ...] = ()

    def __add__(self, other: LabelsTaken) -> LabelsTaken:
        return LabelsTaken(
            self.accepted + other.accepted,
            self.waiting + other.waiting,
            self.corrected + other.corrected,
            self.unchanged + other.unchanged,
            self.older + other.older,
            self.refused + other.refused,
        )


class LabelQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which labels; empty texts mean any. With `history` also those that were corrected.

    `after` is the id of the last label of the page before.
    """

    prediction_id: str = ""
    device: str = ""
    module: str = ""
    state: str = ""
    history: bool = False
    after: RowId = 0
    limit: Limit = 100


def check_row(row: NewLabel, now: float) -> None:
    """Raises LabelError for what no prediction could be labelled with."""
    for name in ("prediction_id", "device", "module", "output"):
        if not getattr(row, name).isprintable():
            raise LabelError("value", f"{name}: expected printable characters")
    if not (math.isfinite(row.weight) and 0 < row.weight <= MAX_WEIGHT):
        raise LabelError("weight", f"weight: expected a number above 0, at most {MAX_WEIGHT:.0f}, got {row.weight}")
    if row.at is not None and not (math.isfinite(row.at) and 0 <= row.at <= now + 86_400):
        raise LabelError("time", f"at: expected seconds since the epoch, up to now, got {row.at}")
    if isinstance(row.label, list):
        if not 0 < len(row.label) <= MAX_ELEMENTS or all(part is None for part in row.label):
            raise LabelError("value", f"label: expected 1 to {MAX_ELEMENTS} values, got {len(row.label)}")
        numbers = [part for part in row.label if part is not None]
    else:
        numbers = [row.label] if isinstance(row.label, float) else []
        if isinstance(row.label, str) and not (0 < len(row.label) <= MAX_TEXT and row.label.isprintable()):
            raise LabelError("value", f"label: expected 1 to {MAX_TEXT} printable characters, got {len(row.label)}")
        if isinstance(row.label, int) and abs(row.label) > 2**53:
            raise LabelError("value", "label: expected a whole number of at most 2^53")
    if not all(math.isfinite(number) for number in numbers):
        raise LabelError("value", "label: expected finite numbers")
