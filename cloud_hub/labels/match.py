"""Which sampled predictions a label is of. Pure: a function of all samples and all labels of one prediction id, so that
the order in which they came makes no difference. Used by `join` for what is kept, by `desk` for what is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cloud_hub.labels.book import Label, Value
from cloud_hub.labels.outputs import LabelError, Output, Outputs


@dataclass(frozen=True)
class Made:
    """A prediction that one build of a module made on one device, as sampled.

    `sample` is the row that holds it, None once it was removed. `repeated`: the device has used the id for several
    predictions, so nobody can say which of them a label means.
    """

    prediction_id: str
    device: str
    module: str
    manifest_sha256: str
    at: float
    sample: int | None = None
    repeated: bool = False


class Said(Protocol):
    """What a label and a row of an import have in common."""

    @property
    def prediction_id(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def output(self) -> str: ...


class Part(NamedTuple):
    """A label's word on one output of one prediction: the value, and as it is stored."""

    output: Output
    value: Value
    place: float


class Winner(NamedTuple):
    label: Label
    part: Part


Known = Mapping[str, Outputs]  # by manifest


def speaks_of(label: Said, made: Made) -> bool:
    return label.device in ("", made.device) and label.module in ("", made.module)


def parts_of(label: Said, value: Value, made: Sequence[Made], known: Known) -> list[tuple[Made, list[Part]]]:
    """The label against the predictions of its id. Empty when none of them is here.

    Raises LabelError: `ambiguous` where the label does not say whose it is, `repeated-id`, or what `Outputs` raises
    when it fits none of the builds that made the prediction.
    """
    mine = [one for one in made if speaks_of(label, one)]
    _check_one(label, "device", {one.device for one in mine}, label.device)
    _check_one(label, "module", {one.module for one in mine}, label.module)
    clear = [one for one in mine if not one.repeated]
    if mine and not clear:
        text = f"prediction {label.prediction_id[:80]}: its device has used this id for more than one prediction"
        raise LabelError("repeated-id", text)
    found: list[tuple[Made, list[Part]]] = []
    failure: LabelError | None = None
    for one in clear:
        try:
            pairs = known[one.manifest_sha256].expand(label.output, value)
            found.append((one, [Part(output, part, output.place_of(part)) for output, part in pairs]))
        except LabelError as error:
            failure = error
    if failure is not None and not found:
        raise failure
    return found


def winners(
    labels: Iterable[Label], made: Sequence[Made], known: Known, on_unusable: Callable[[Label, LabelError], None]
) -> dict[tuple[Made, str], Winner]:
    """The label that counts for each prediction and output: the newest of those that speak of it."""
    best: dict[tuple[Made, str], Winner] = {}
    for label in sorted(labels, key=lambda one: one.order):
        try:
            found = parts_of(label, label.value, made, known)
        except LabelError as error:
            on_unusable(label, error)
            continue
        for one, parts in found:
            for part in parts:
                best[one, part.output.name] = Winner(label, part)
    return best


def _check_one(label: Said, what: str, names: set[str], said: str) -> None:
    if not said and len(names) > 1:
        some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        raise LabelError(
            "ambiguous",
            f"prediction {label.prediction_id[:80]}: {len(names)} {what}s have made one of this id ({some}); "
            f"name the {what}",
        )
