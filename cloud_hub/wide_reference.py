"""Features of images, sounds and texts: few numbers per row in place of one feature per pixel, sample or word.

Pure; called by `cloud_hub.reference`. What each number is stands at `modules.windows.Numeric`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from modules.tensors import TensorSpec
from modules.windows import Take

WIDE = 256  # elements per row: more of them say little one by one and make every window large
MAX_CHANNELS = 4
PROJECTIONS = 8
FEW_TEXTS = 20

Taken = tuple[str, Take, int, tuple[int, ...]]  # name, how, index, axes


def is_wide(spec: TensorSpec, shape: Sequence[int]) -> bool:
    """More elements per row than are looked at one by one. A table's columns have names, and are."""
    return spec.datatype != "BYTES" and math.prod(shape) > WIDE and not (shape and len(spec.labels) == math.prod(shape))


def wide_takes(shape: Sequence[int]) -> list[Taken]:
    """What is taken of a row of this shape: as of a picture where it has two dimensions or more, else as of a sound."""
    axes = image_axes(shape)
    picture: list[Taken] = [("brightness", "brightness", 0, ()), ("contrast", "contrast", 0, ())]
    sound: list[Taken] = [("energy", "energy", 0, ()), ("crossings", "crossings", 0, axes)]
    declared = [*(picture if len(shape) > 1 else sound), ("sharpness", "sharpness", 0, axes)]
    return [*declared, *((f"projection{i}", "projection", i, ()) for i in range(PROJECTIONS))]


def image_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The dimensions along which neighbours lie: the last two, or those before a last one of few channels."""
    if len(shape) < 2:
        return (-1,)
    return (-3, -2) if len(shape) > 2 and shape[-1] <= MAX_CHANNELS else (-2, -1)


def is_free_text(distinct: int, rows: int, most: int) -> bool:
    """Whether texts hardly repeat, so that categories of them would say nothing: their length is profiled instead."""
    return distinct > most or (distinct > FEW_TEXTS and 2 * distinct > rows)
