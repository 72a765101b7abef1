"""The reference profile of a training sample: how inputs and answers were distributed when the model was made.

Arrays in, a `ReferenceProfile` out; no files and no model here. The cells are those of `modules.windows`, which a
device counts into. Called by the child of `probing`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from cloud_hub.joint_reference import joint_features
from cloud_hub.wide_reference import is_free_text, is_wide, wide_takes
from modules.errors import WindowError
from modules.taking import Taker
from modules.tensors import TensorSpec
from modules.windows import Categorical, Feature, Joint, Numeric, ReferenceProfile, Take

Array = np.ndarray[Any, np.dtype[Any]]
FloatArray = np.ndarray[Any, np.dtype[np.float64]]

BINS = 10
MAX_ELEMENTS = 4096  # features of one tensor; more say little one by one and make every window large
MAX_CATEGORIES = 256  # the rarer ones count as unknown, in the reference as on the device
MAX_CLASSES = 64  # an integer output with more distinct values is a number, not a class
_SUM_TOLERANCE = 1e-2  # float16 and quantised models do not sum to 1 exactly


def profile_training(
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    input_specs: Sequence[TensorSpec],
    output_specs: Sequence[TensorSpec],
    bins: int = BINS,
) -> ReferenceProfile:
    """Profile arrays by tensor name, rows first; the specs give the order and the labels.

    Raises WindowError when rows differ, are none, or an input has more than MAX_ELEMENTS elements per row.
    """
    rows = {len(array) for array in (*inputs.values(), *outputs.values())}
    if len(rows) != 1 or rows == {0}:
        raise WindowError(f"training sample: expected the same number of rows in every array, got {sorted(rows)}")
    profiled_inputs = [feature for spec in input_specs for feature in _input(spec, inputs[spec.name], bins)]
    profiled_outputs = [feature for spec in output_specs for feature in _output(spec, outputs[spec.name], bins)]
    joint = _joint(profiled_inputs, inputs, input_specs)
    return ReferenceProfile(rows.pop(), tuple(profiled_inputs), tuple(profiled_outputs), joint)


def choose_edges(values: Array, bins: int = BINS) -> FloatArray:
    """Edges that part finite values into bins of about equal count; every edge fits the values' dtype.

    An inner edge lies halfway between two neighbouring distinct values, so no value lies on it. A value that fills a
    bin's share alone gets a bin of its own, and the rest is parted without it: at most twice `bins` in all. The outer
    edges are the smallest and the largest value; a constant gives (v, v).
    """
    distinct, counts = np.unique(values, return_counts=True)
    if distinct.size == 0:
        return np.zeros(2)
    cuts = np.arange(distinct.size - 1) if distinct.size <= bins else _cuts(counts, bins)
    left, right = distinct[cuts], distinct[cuts + 1]
    middle = (left / 2 + right / 2).astype(values.dtype if values.dtype.kind == "f" else np.float64)
    inner = np.where(middle > left, middle, right)
    return np.concatenate([distinct[:1], inner, distinct[-1:]]).astype(np.float64)


def count_numeric(values: Array, edges: FloatArray) -> list[int]:
    """Rows per cell: the bins, under, over, missing."""
    bins = len(edges) - 1
    missing = np.isnan(values)
    known = values[~missing]
    under, over = known < edges[0], known > edges[-1]
    inside = known[~(under | over)]
    index = np.minimum(np.searchsorted(edges, inside, side="right") - 1, bins - 1)
    counted = np.bincount(index, minlength=bins)
    return [*counted.tolist(), int(under.sum()), int(over.sum()), int(missing.sum())]


def _cuts(counts: Array, bins: int) -> Array:
    """After which of the distinct values to cut, given how often each occurs."""
    heavy = counts * bins >= counts.sum()
    own = np.flatnonzero(heavy)
    below = np.cumsum(np.where(heavy, 0, counts))
    share = max(bins - own.size, 1)
    targets = below[-1] * np.arange(1, share) / share
    after = np.searchsorted(below, targets)
    before = np.maximum(after - 1, 0)
    nearest = np.where(targets - below[before] <= below[after] - targets, before, after)
    cuts = np.unique(np.concatenate([own - 1, own, nearest]))
    return cuts[(cuts >= 0) & (cuts < counts.size - 1)]


def _input(spec: TensorSpec, array: Array, bins: int) -> Iterator[Feature]:
    flat = array.reshape(len(array), -1)
    if is_wide(spec, array.shape[1:]):
        yield from _wide(spec, array, bins)
        return
    if flat.shape[1] > MAX_ELEMENTS:
        raise WindowError(
            f"input {spec.name}: expected at most {MAX_ELEMENTS} elements per row to profile, got {flat.shape[1]}; "
            "build without a training sample, or give the model smaller inputs"
        )
    for index, name in enumerate(_names(spec, array)):
        yield _column(spec, name, flat, index, bins)


def _output(spec: TensorSpec, array: Array, bins: int) -> Iterator[Feature]:
    flat = array.reshape(len(array), -1)
    if _is_class_vector(spec, flat):
        categories = spec.labels or tuple(str(index) for index in range(flat.shape[1]))
        yield _argmax(spec, flat, categories)
        yield _maximum(spec, flat, bins)
    elif flat.shape[1] > MAX_ELEMENTS and spec.datatype != "BYTES":
        yield _maximum(spec, flat, bins)
        yield from _wide(spec, array, bins)
    elif is_wide(spec, array.shape[1:]):
        yield from _wide(spec, array, bins)
    else:
        for index, name in enumerate(_names(spec, array)):
            column = flat[:, index]
            if column.dtype.kind in "iu" and np.unique(column).size <= MAX_CLASSES:
                yield _categorical(spec, name, column, index)
            else:
                yield _column(spec, name, flat, index, bins)


def _column(spec: TensorSpec, name: str, flat: Array, index: int, bins: int) -> Feature:
    column = flat[:, index]
    if spec.datatype == "BOOL" or column.dtype.kind == "b":
        return _boolean(spec, name, column, index)
    if spec.datatype != "BYTES" and column.dtype.kind not in "OSU":
        return _numeric(spec, name, flat, bins, "column", index)
    texts = [as_text(value) for value in column.tolist()]
    known = [text for text in texts if text is not None]
    if spec.datatype == "BYTES" and is_free_text(len(set(known)), len(known), MAX_CATEGORIES):
        return _numeric(spec, f"{name}.length", flat, bins, "length", index)
    return _categorical(spec, name, column, index)


def _wide(spec: TensorSpec, array: Array, bins: int) -> Iterator[Feature]:
    shape = array.shape[1:]
    flat = array.reshape(len(array), -1)
    for name, take, index, axes in wide_takes(shape):
        yield _numeric(spec, f"{spec.name}.{name}", flat, bins, take, index, axes, shape)


def _boolean(spec: TensorSpec, name: str, column: Array, index: int) -> Categorical:
    true = int(column.astype(bool).sum())
    return Categorical(name, spec.name, ("False", "True"), (len(column) - true, true, 0, 0), index=index)


def _joint(features: Sequence[Feature], inputs: Mapping[str, Array], specs: Sequence[TensorSpec]) -> Joint | None:
    """Only of tensors whose rows come one below the other on the device, too, and are of one length."""
    in_rows = {spec.name for spec in specs if spec.shape[:1] in ((-1,), (1,)) and -1 not in spec.shape[1:]}
    found = []
    for place, feature in enumerate(features):
        if isinstance(feature, Numeric) and feature.tensor in in_rows:
            array = inputs[feature.tensor]
            shape = array.shape[1:]
            found.append((place, feature, Taker(feature, len(shape)).take(array.reshape(len(array), -1), shape)))
    return joint_features(found)


def _is_class_vector(spec: TensorSpec, flat: Array) -> bool:
    """Scores of classes: labelled as such, or shares that add up to 1 in every row."""
    if flat.dtype.kind != "f" or flat.shape[1] < 2:
        return False
    if len(spec.labels) == flat.shape[1]:
        return True
    wide = flat.astype(np.float64)
    return bool(wide.min() >= -_SUM_TOLERANCE and np.abs(wide.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)


def _argmax(spec: TensorSpec, flat: Array, categories: tuple[str, ...]) -> Categorical:
    """A row with a NaN has no largest element: it is missing."""
    missing = np.isnan(flat).any(axis=1)
    counted = np.bincount(flat[~missing].argmax(axis=1), minlength=len(categories)) if not missing.all() else None
    counts = [0] * len(categories) if counted is None else counted.tolist()
    return Categorical(f"{spec.name}.class", spec.name, categories, (*counts, 0, int(missing.sum())), take="argmax")


def _maximum(spec: TensorSpec, flat: Array, bins: int) -> Numeric:
    """The row's maximum; NaN, and so missing, where the row has one."""
    return _numeric(spec, f"{spec.name}.confidence", flat, bins, "max", 0)


def _numeric(
    spec: TensorSpec,
    name: str,
    flat: Array,
    bins: int,
    take: Take,
    index: int,
    axes: tuple[int, ...] = (),
    shape: tuple[int, ...] = (),
) -> Numeric:
    blank = Numeric(name, spec.name, (0.0, 1.0), (0,) * 4, 0.0, 1.0, take, index, axes)
    column = Taker(blank, len(shape)).take(flat, shape)
    values = column if column.dtype.kind == "f" else column.astype(np.float64)
    finite = values[np.isfinite(values)]
    edges = choose_edges(finite, bins)
    mean, scale = _mean_and_scale(finite.astype(np.float64))
    counts = count_numeric(values.astype(np.float64), edges)
    return msgspec.structs.replace(blank, edges=tuple(edges.tolist()), counts=tuple(counts), mean=mean, scale=scale)


def _mean_and_scale(values: FloatArray) -> tuple[float, float]:
    """Mean and standard deviation; 1 where there is no spread, the middle value where sums overflow."""
    if values.size == 0:
        return 0.0, 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = float(values.mean()), float(values.std())
    if not np.isfinite(mean) or not np.isfinite(scale):
        return float(np.sort(values)[values.size // 2]), 1.0
    return mean, scale if scale > 0 else 1.0


def _categorical(spec: TensorSpec, name: str, column: Array, index: int) -> Categorical:
    """Categories are the texts that the device will see; labels give them when they are such texts."""
    texts = [as_text(value) for value in column.tolist()]
    found: dict[str, int] = {}
    missing = 0
    for text in texts:
        if text is None:
            missing += 1
        else:
            found[text] = found.get(text, 0) + 1
    categories = _categories(spec, found, whole=column.dtype.kind in "iu")
    counts = [found.get(category, 0) for category in categories]
    unknown = len(texts) - missing - sum(counts)
    return Categorical(name, spec.name, categories, (*counts, unknown, missing), index=index)


def as_text(value: object) -> str | None:
    """A value as its category's text; None is missing."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _categories(spec: TensorSpec, found: Mapping[str, int], whole: bool) -> tuple[str, ...]:
    labels = tuple(dict.fromkeys(spec.labels))
    if labels and spec.shape[-1:] != (len(labels),) and found.keys() <= set(labels):
        return labels
    if whole:
        # Class numbers, also those that the sample happens not to hold below the number of labels.
        numbers = {int(text) for text in found} | set(range(len(labels)))
        return tuple(str(number) for number in sorted(numbers))
    frequent = sorted(found, key=lambda text: (-found[text], text))[:MAX_CATEGORIES]
    return tuple(sorted(frequent)) or ("",)


def _names(spec: TensorSpec, array: Array) -> list[str]:
    """`tensor` for one element per row, else `tensor[2,5]`; labels name the last dimension."""
    shape = array.shape[1:]
    if int(np.prod(shape)) == 1:
        return [spec.name]
    last = spec.labels if shape and len(spec.labels) == shape[-1] else tuple(str(i) for i in range(shape[-1]))
    places = (",".join((*map(str, place[:-1]), last[place[-1]])) for place in np.ndindex(*shape))
    return [f"{spec.name}[{place}]" for place in places]
