"""Do two versions say the same? Row by row, on what a reader of the answers acts upon. Pure; worker side.

Labels, numbers of classes and texts where the module answers with any; else which class has the largest score; else
the numbers themselves, within the tolerance of its golden inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from agent.backends import Array
from agent.endpoint.codec import FLOATS
from modules.manifest import Manifest
from modules.tensors import TensorSpec, served


class Agreement:
    """The rule for one module; `scores` is the output whose largest element is the confidence, or empty."""

    def __init__(self, manifest: Manifest, scores: str) -> None:
        outputs = served(manifest.outputs)
        exact = [spec for spec in outputs if spec.datatype not in FLOATS]
        self._scores = scores
        self._specs = exact or [spec for spec in outputs if spec.name == scores] or list(outputs)
        self._rtol, self._atol = manifest.health.rtol, manifest.health.atol

    def rows(self, rows: int, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> int | None:
        """How many agree; None where that cannot be said of these."""
        agree = np.ones(rows, bool)
        for spec in self._specs:
            one, other = ours.get(spec.name), theirs.get(spec.name)
            if one is None or other is None or one.shape != other.shape or not _has_rows(spec, one, rows):
                return None
            agree &= self._same(spec, one.reshape(rows, -1), other.reshape(rows, -1))
        return int(agree.sum())

    def _same(self, spec: TensorSpec, one: Array, other: Array) -> Array:
        if spec.name == self._scores:
            return np.asarray(one.argmax(axis=1) == other.argmax(axis=1))
        if spec.datatype in FLOATS:
            return np.asarray(np.isclose(one, other, self._rtol, self._atol, equal_nan=True).all(axis=1))
        return np.asarray(np.equal(one, other).astype(bool).all(axis=1))


def _has_rows(spec: TensorSpec, array: Array, rows: int) -> bool:
    return array.size > 0 and (rows == 1 or (spec.shape[:1] == (-1,) and array.shape[0] == rows))
