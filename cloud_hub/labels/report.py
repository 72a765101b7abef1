"""What is asked of a module's quality and what is answered: the API's types. Pure; filled in by `quality`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_hub.bounds import AnyVersion
from cloud_hub.labels import figures
from cloud_hub.labels.estimate import Estimate, NoEstimate
from cloud_hub.labels.figures import Calibration, ClassFigures, Confusion, Figure
from cloud_hub.labels.sums import Part


class QualityQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without a version the newest that has labels (all of them with `by=version`); without an output every one.

    `by`: device, day, version, profile, agent, os, or a tag of the devices. Times are seconds since the epoch by the
    devices' clocks; without `since` the last 90 days.
    """

    module: str
    version: AnyVersion = 0
    output: str = ""
    device: str = ""
    by: Annotated[str, msgspec.Meta(max_length=63)] = ""
    since: float = 0.0
    until: float = 0.0


class Figures(msgspec.Struct, frozen=True):
    """Of one group of labelled predictions: `rows` of them, that count as `effective` ones of equal weight.

    Of classes `accuracy`, `log_loss` and `brier` (the sum over classes, 0 to 2), of numbers `mae`, `rmse` and `bias`
    (predicted less true).
    """

    name: str
    rows: int
    effective: float
    accuracy: Figure | None = None
    log_loss: Figure | None = None
    brier: Figure | None = None
    mae: Figure | None = None
    rmse: Figure | None = None
    bias: Figure | None = None


class QualityReport(msgspec.Struct, frozen=True):
    """One output of a module, over the labelled predictions from `since` to `until`, weighted by 1/probability.

    `estimate` is no measurement: what confidences say of all predictions, labelled or not. None for numbers.
    """

    module: str
    versions: tuple[int, ...]
    output: str
    kind: str
    since: float
    until: float
    device: str
    total: Figures
    by: str
    parts: tuple[Figures, ...]
    more_parts: bool
    classes: tuple[ClassFigures, ...]
    confusion: tuple[Confusion, ...]
    calibration: Calibration | None
    estimate: Estimate | NoEstimate | None


def figures_of(
    name: str,
    kind: str,
    part: Part | None,
    shares: dict[str, float] | None = None,
    distance: tuple[float, float] | None = None,
) -> Figures:
    """`shares` of the classes, or the `distance` of the numbers from their mean, for the dummies."""
    if part is None:
        return Figures(name, 0, 0.0)
    error = part.error
    if kind == "number":
        mae, rmse = distance or (None, None)
        return Figures(
            name,
            error.rows,
            error.effective,
            mae=figures.mean_figure(part.size, mae, 0.0),
            rmse=figures.root_figure(part.square, rmse),
            bias=figures.mean_figure(error),
        )
    accuracy, log_loss, brier = figures.dummies(shares or {})
    return Figures(
        name,
        error.rows,
        error.effective,
        accuracy=figures.accuracy_of(error, accuracy),
        log_loss=figures.mean_figure(part.log_loss, log_loss, 0.0),
        brier=figures.mean_figure(part.brier, brier, 0.0),
    )
