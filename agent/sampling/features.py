"""The values of a feature by the name that a policy calls it: one in the reference profile, a tensor, or
`tensor[place]`. Raises PolicyError for a name that this module does not have. Used by `strata` and `redaction`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent.backends import Array
from agent.errors import AgentError
from agent.watching.columns import category_text
from modules.manifest import Manifest
from modules.taking import Taker
from modules.tensors import TensorSpec
from modules.windows import Categorical, Feature, Numeric, ReferenceProfile


class PolicyError(AgentError):
    """The sampling policy speaks of what this module does not have."""

    key = "policy-unfit"


@dataclass(frozen=True)
class Place:
    """Where the values of a feature stand: in a tensor, as its flat element `index`, or all of it (-1); `take` as in
    the reference profile. `known` is the feature there, None where there is none.
    """

    spec: TensorSpec
    is_input: bool
    index: int
    take: str = "column"
    known: Feature | None = None
    taker: Taker | None = None


class Names:
    """The names of one module."""

    def __init__(self, manifest: Manifest, reference: ReferenceProfile | None) -> None:
        self.specs = {spec.name: (spec, True) for spec in manifest.inputs}
        self.specs |= {spec.name: (spec, False) for spec in manifest.outputs}
        self.reference = reference
        self._features = {feature.name: feature for feature in reference.features} if reference is not None else {}

    def find(self, name: str) -> Place:
        """Raises PolicyError."""
        feature = self._features.get(name)
        if feature is not None and feature.tensor in self.specs:
            spec, is_input = self.specs[feature.tensor]
            taker = None
            if isinstance(feature, Numeric) and feature.take != "column":
                taker = Taker(feature, len(spec.shape) - in_rows(spec))
            return Place(spec, is_input, feature.index, feature.take, feature, taker)
        tensor, bracket, inside = name.partition("[")
        if tensor not in self.specs or (bracket and not inside.endswith("]")):
            some = ", ".join([*self._features, *self.specs][:20])
            raise PolicyError(f"sampling: expected a feature or tensor of this module, such as {some}, got {name!r}")
        spec, is_input = self.specs[tensor]
        return Place(spec, is_input, _index(spec, inside[:-1]) if bracket else -1)

    def columns(self, tensor: str) -> list[Numeric]:
        """The numeric features that are single elements of the tensor."""
        found = (f for f in self._features.values() if isinstance(f, Numeric) and f.tensor == tensor)
        return [feature for feature in found if feature.take == "column"]


def numbers(place: Place, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> Array:
    """One number per row; NaN where the row has none. A tensor without rows of its own belongs to every row."""
    block = flat(place, inputs if place.is_input else outputs, rows)
    if block is None:
        return np.full(rows, math.nan)
    if place.taker is not None:
        array = (inputs if place.is_input else outputs)[place.spec.name]
        shape = array.shape[1:] if in_rows(place.spec) else array.shape
        return place.taker.take(block, shape).astype(np.float64)
    index = max(0, place.index)
    if block.dtype == object or index >= block.shape[1]:
        return np.full(rows, math.nan)
    return block[:, index].astype(np.float64)


def categories(place: Place, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int) -> list[str]:
    """One category per row, as the reference profile writes it; empty where the row has none."""
    block = flat(place, inputs if place.is_input else outputs, rows)
    index = max(0, place.index)
    if block is None or block.shape[1] == 0 or index >= block.shape[1]:
        return [""] * rows
    if place.take == "argmax":
        names = place.known.categories if isinstance(place.known, Categorical) else place.spec.labels
        return [names[i] if i < len(names) else str(i) for i in block.argmax(axis=1).tolist()]
    texts = (category_text(value) for value in block[:, index].tolist())
    return ["" if text == "nan" else text for text in texts]


def flat(place: Place, arrays: Mapping[str, Array], rows: int) -> Array | None:
    """The tensor as one line per row; None where it is not there."""
    array = arrays.get(place.spec.name)
    if array is None:
        return None
    if in_rows(place.spec) and array.shape[0] == rows:
        return array.reshape(rows, -1)
    return np.broadcast_to(array.reshape(1, -1), (rows, array.size))


def in_rows(spec: TensorSpec) -> bool:
    """Whether the tensor has a row per prediction."""
    return bool(spec.shape) and spec.shape[0] == -1


def _index(spec: TensorSpec, inside: str) -> int:
    """The flat place of `2,5` or `2,label` within a row. Raises PolicyError."""
    shape = spec.shape[1:] if spec.shape and spec.shape[0] == -1 else spec.shape
    parts = inside.split(",")
    labels = spec.labels if shape and len(spec.labels) == shape[-1] else ()
    last = labels.index(parts[-1]) if parts[-1] in labels else None
    numbers_ = parts if last is None else [*parts[:-1], str(last)]
    if not all(part.isdigit() for part in numbers_) or len(numbers_) not in (1, len(shape)):
        raise PolicyError(f"sampling: expected a place in {spec.name} {list(shape)}, got {inside!r}")
    place = [int(part) for part in numbers_]
    if len(place) == 1:
        size = math.prod(shape) if all(s > 0 for s in shape) else None
        if size is not None and place[0] >= size:
            raise PolicyError(f"sampling: expected a place in {spec.name} {list(shape)}, got {inside!r}")
        return place[0]
    if any(s > 0 and at >= s for at, s in zip(place, shape, strict=True)) or any(s < 0 for s in shape[1:]):
        raise PolicyError(f"sampling: expected a place in {spec.name} {list(shape)}, got {inside!r}")
    index = 0
    for at, size_ in zip(place, shape, strict=True):
        index = index * abs(size_) + at
    return index
