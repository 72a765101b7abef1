"""How a number per row is taken from a tensor: one function for the training sample and for the rows on a device.

Imports NumPy, so the agent's parent does not import this file. Called by `agent.watching` and `cloud_hub.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modules.errors import WindowError
from modules.projection import projection
from modules.windows import Numeric

Array = np.ndarray[Any, np.dtype[Any]]
CHUNK_ELEMENTS = 1 << 22  # of rows that are looked at together: what is made of them takes some times their memory
ALONG_AXES = frozenset({"sharpness", "crossings"})


class Taker:
    """Of one feature. `take` gives a float per row; NaN is missing, as it is in a row that holds one."""

    def __init__(self, feature: Numeric, rank: int) -> None:
        """`rank` is the number of a row's dimensions. Raises WindowError where the axes are not among them."""
        if feature.take in ALONG_AXES and not (feature.axes and all(-rank <= axis < 0 for axis in feature.axes)):
            raise WindowError(f"feature {feature.name}: expected axes from -{rank} to -1, got {list(feature.axes)}")
        self._feature = feature
        self._drawn: dict[int, tuple[Array, Array]] = {}

    def take(self, block: Array, shape: Sequence[int]) -> Array:
        """`block` has a flat row per row, each of `shape`."""
        step = max(1, CHUNK_ELEMENTS // max(1, block.shape[1]))
        with np.errstate(over="ignore", invalid="ignore"):
            if len(block) <= step:
                return self._taken(block, tuple(shape))
            parts = [self._taken(block[at : at + step], tuple(shape)) for at in range(0, len(block), step)]
        return np.concatenate(parts)

    def _taken(self, block: Array, shape: tuple[int, ...]) -> Array:
        feature, width = self._feature, block.shape[1]
        if feature.take in ("column", "length") and feature.index >= width:
            return np.full(len(block), np.nan)
        if feature.take == "column":
            return np.asarray(block[:, feature.index])
        if feature.take == "length":
            return np.array([_length(value) for value in block[:, feature.index]], np.float64)
        if width == 0:
            return np.full(len(block), np.nan)
        match feature.take:
            case "max":
                return np.asarray(block.max(axis=1))
            case "brightness":
                return np.asarray(block.mean(axis=1, dtype=np.float64))
            case "contrast":
                return _deviation(_floats(block))
            case "energy":
                return _root_mean_square(_floats(block))
            case "projection":
                return self._projected(block, width)
        return _along(feature, _floats(block).reshape(len(block), *shape))

    def _projected(self, block: Array, width: int) -> Array:
        if width not in self._drawn:
            drawn = projection(self._feature.index, width)
            self._drawn = {width: (np.array(drawn[0]), np.array(drawn[1]))}
        places, weights = self._drawn[width]
        return np.asarray(block[:, places].astype(np.float64) @ weights)


def _floats(block: Array) -> Array:
    """Small numbers as float32, which are exact there; others as float64."""
    if block.dtype.kind == "f" and block.itemsize >= 4:
        return block
    return block.astype(np.float32 if block.itemsize <= 2 else np.float64)


def _deviation(values: Array) -> Array:
    mean = values.mean(axis=1, dtype=np.float64)
    return _root_mean_square(values - mean[:, np.newaxis].astype(values.dtype))


def _root_mean_square(values: Array) -> Array:
    squares = np.einsum("ij,ij->i", values, values).astype(np.float64)
    return np.asarray(np.sqrt(squares / values.shape[1]))


def _along(feature: Numeric, rows: Array) -> Array:
    """A mean over all pairs of neighbours."""
    total, pairs = np.zeros(len(rows)), 0
    for axis in feature.axes:
        values = np.moveaxis(rows, axis, 1)
        if feature.take == "sharpness":
            said = np.abs(values[:, 1:] - values[:, :-1])
        else:
            below = values < 0
            said = below[:, 1:] != below[:, :-1]
        total += said.reshape(len(rows), -1).sum(axis=1, dtype=np.float64)
        pairs += said[0].size if len(said) else 0
    if pairs == 0:
        return np.full(len(rows), np.nan)
    total[np.isnan(rows).reshape(len(rows), -1).any(axis=1)] = np.nan
    return total / pairs


def _length(value: object) -> float:
    if isinstance(value, bytes):
        return len(value)
    return np.nan if value is None else len(str(value).encode())
