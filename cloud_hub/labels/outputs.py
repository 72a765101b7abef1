"""What a module answers, as labels speak of it: its outputs by name, which are classes and which numbers. Pure.

A vector of class scores is one output of classes. Any other vector is one output per element, `y[2]` or `y[left]`, as
its features are called; a label that names the vector gives a list. Built once per manifest by `known`; used by `match`
and `answers`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from cloud_hub.labels.book import Value
from modules.manifest import Manifest
from modules.tensors import TensorSpec
from modules.windows import Categorical, Feature, Numeric, ReferenceProfile

Kind = Literal["class", "number"]
MAX_ELEMENTS: Final = 4096  # of one vector; more are not labelled one by one
LARGEST: Final = 1e60  # of a number; the fourth power of an error is summed
FLOATS: Final = ("FP16", "FP32", "FP64")


class LabelError(Exception):
    """A label that cannot be used here: a stable key, and words."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


@dataclass(frozen=True)
class Output:
    """One thing that a label can be of. `index` is the element of the flat tensor; scores are the whole of it.

    `classes` in the order of their places; empty for numbers, and for texts of which no list is known. `edges` are the
    reference profile's, of the confidence; `scale` is the spread of a number over the training data, 0 if unknown.
    """

    name: str
    tensor: str
    kind: Kind
    index: int = 0
    scores: bool = False
    classes: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    scale: float = 0.0

    def place_of(self, value: Value) -> float:
        """The label as it is stored: a number, or the place of its class. Raises LabelError."""
        if isinstance(value, list):
            raise LabelError("value", f"output {self.name}: expected one value, got a list of {len(value)}")
        return self._number(value) if self.kind == "number" else float(self._class(value))

    def _number(self, value: bool | float | str) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= LARGEST:
            raise LabelError("value", f"output {self.name}: expected a number up to {LARGEST:g}, got {_short(value)}")
        return number

    def _class(self, value: bool | float | str) -> int:
        text = _text(value)
        if text in self.classes:
            return self.classes.index(text)
        if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(self.classes):
            return int(text)
        if not self.classes and isinstance(value, str):
            return -1  # compared as text
        known = ", ".join(self.classes[:10]) + (", ..." if len(self.classes) > 10 else "")
        raise LabelError(
            "unknown-class", f"output {self.name}: expected one of {known or 'texts'}, got {_short(value)}"
        )


@dataclass(frozen=True)
class Outputs:
    """Of one module. `main` is the output that a label without a name is of; `vectors` are elements by tensor.

    `heaviest` is how many predictions a sample stands for that was taken for no special reason; 0 if none is.
    """

    main: str
    by_name: Mapping[str, Output]
    vectors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    heaviest: float = 0.0

    @classmethod
    def of(cls, manifest: Manifest, reference: ReferenceProfile | None) -> Outputs:
        found: dict[str, Output] = {}
        vectors: dict[str, tuple[str, ...]] = {}
        for spec in manifest.outputs:
            features = [f for f in (reference.outputs if reference else ()) if f.tensor == spec.name]
            scores = _scores(spec, features)
            elements = [] if scores and features else list(_elements(spec, features))
            if len(elements) > 1 or (elements and scores):
                vectors[spec.name] = tuple(element.name for element in elements)
            for output in (*([scores] if scores else ()), *elements):
                found.setdefault(output.name, output)
        best = [output.name for output in found.values() if output.scores]
        others = [spec.name for spec in manifest.outputs if spec.name in found or spec.name in vectors]
        rate = manifest.sampling.rate
        return cls(next(iter(best + others), ""), found, vectors, 1 / rate if rate > 0 else 0.0)

    def expand(self, name: str, value: Value) -> list[tuple[Output, Value]]:
        """The outputs that a label is of, each with its part of the value; null parts are none. Raises LabelError."""
        wanted = name or self.main
        if isinstance(value, list) and wanted in self.vectors:
            elements = self.vectors[wanted]
            if len(value) != len(elements):
                raise LabelError("value", f"output {wanted}: expected {len(elements)} values, got {len(value)}")
            return [(self.by_name[e], part) for e, part in zip(elements, value, strict=True) if part is not None]
        if wanted in self.by_name:
            return [(self.by_name[wanted], value)]
        if wanted in self.vectors:
            raise LabelError("value", f"output {wanted}: expected a list of {len(self.vectors[wanted])} numbers")
        known = ", ".join(itertools.islice(self.by_name, 10)) or "none that can be labelled"
        raise LabelError("unknown-output", f"expected an output of {known}, got {_short(wanted)}")


def _scores(spec: TensorSpec, features: Sequence[Feature]) -> Output | None:
    """The tensor as scores of classes, if it is that: profiled as such, labelled as such, or of a form that may be."""
    edges = next((f.edges for f in features if isinstance(f, Numeric) and f.take == "max"), ())
    for feature in features:
        if isinstance(feature, Categorical) and feature.take == "argmax":
            return Output(spec.name, spec.name, "class", scores=True, classes=feature.categories, edges=edges)
    size = _row_size(spec)
    if spec.datatype not in FLOATS or size > MAX_ELEMENTS:
        return None
    if len(spec.labels) == size >= 2 or (size == 1 and len(spec.labels) == 2):
        return Output(spec.name, spec.name, "class", scores=True, classes=spec.labels, edges=edges)
    if features or size < 2 or len(spec.shape) != 2:
        return None
    return Output(spec.name, spec.name, "class", scores=True, classes=tuple(map(str, range(size))))


def _elements(spec: TensorSpec, features: Sequence[Feature]) -> Iterator[Output]:
    size = _row_size(spec)
    by_index = {f.index: f for f in features if f.take == "column"}
    if not 0 < size <= MAX_ELEMENTS or (len(spec.labels) == 2 and size == 1 and spec.datatype in FLOATS):
        return
    for index in range(size):
        feature = by_index.get(index)
        name = feature.name if feature is not None else _element_name(spec, index, size)
        yield _element(spec, name, index, feature)


def _element(spec: TensorSpec, name: str, index: int, feature: Feature | None) -> Output:
    if spec.datatype in ("BYTES", "BOOL") or isinstance(feature, Categorical):
        return Output(name, spec.name, "class", index, classes=_classes(spec, feature))
    scale = feature.scale if isinstance(feature, Numeric) else 0.0
    return Output(name, spec.name, "number", index, scale=scale)


def _classes(spec: TensorSpec, feature: Feature | None) -> tuple[str, ...]:
    if spec.datatype == "BOOL":
        return ("False", "True")
    categories = feature.categories if isinstance(feature, Categorical) else ()
    named = bool(spec.labels) and spec.shape[-1:] != (len(spec.labels),)
    # Class numbers 0, 1, 2, ... that the module has names for.
    if named and (spec.datatype == "BYTES" or categories == tuple(map(str, range(len(spec.labels))))):
        return spec.labels
    return categories


def _row_size(spec: TensorSpec) -> int:
    """Elements per row; 0 where a dimension beside the first is free."""
    sizes = spec.shape[1:] if spec.shape[:1] in ((-1,), (1,)) else spec.shape
    return 0 if -1 in sizes else math.prod(sizes)


def _element_name(spec: TensorSpec, index: int, size: int) -> str:
    if size == 1:
        return spec.name
    return f"{spec.name}[{spec.labels[index] if len(spec.labels) == size else index}]"


def _text(value: bool | float | str) -> str:
    """A value as the name of a class, as the device and the reference profile have it."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value)
    return text.capitalize() if text.lower() in ("true", "false") and text.islower() else text


def _short(value: object) -> str:
    return repr(value)[:80]
