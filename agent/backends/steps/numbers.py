"""Steps on plain numbers, each over the whole batch at once. Meaning and checks: `modules.steps.shapes`, `.scores`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agent.backends import Array
from agent.endpoint.codec import DTYPES
from modules.steps import ArgMax, Cast, Normalise, Reshape, Sigmoid, Slice, Softmax, Threshold, TopK, Transpose

Tensors = dict[str, Array]


def cast(step: Cast, tensors: Tensors) -> None:
    array, wanted = tensors[step.tensor], DTYPES[step.datatype]
    if wanted.kind in "iu" and array.dtype.kind == "f":
        array = saturated(array, wanted)
    elif wanted.kind in "iu" and array.dtype.kind in "iu":
        bounds = np.iinfo(wanted)
        low = max(bounds.min, np.iinfo(array.dtype).min)
        array = array.clip(low, min(bounds.max, np.iinfo(array.dtype).max))
    tensors[step.to or step.tensor] = np.ascontiguousarray(array.astype(wanted, copy=False))


def saturated(array: Array, wanted: np.dtype[Any]) -> Array:
    """Floating point numbers as integers: rounded to even, cut off at the bounds; NaN is 0."""
    bounds = np.iinfo(wanted)
    rounded = np.rint(np.nan_to_num(array.astype(np.float64, copy=False), nan=0.0, posinf=np.inf, neginf=-np.inf))
    whole = rounded.clip(bounds.min, bounds.max).astype(wanted)
    # The largest of 64 bits is no floating point number: what was cut off there would wrap around.
    return np.where(rounded >= float(bounds.max), bounds.max, whole).astype(wanted, copy=False)


def transpose(step: Transpose, tensors: Tensors) -> None:
    tensors[step.to or step.tensor] = np.ascontiguousarray(tensors[step.tensor].transpose(step.axes))


def reshape(step: Reshape, tensors: Tensors) -> None:
    array = tensors[step.tensor]
    shape = [array.shape[i] if size == 0 else size for i, size in enumerate(step.shape)]
    tensors[step.to or step.tensor] = array.reshape(shape)


def slice_(step: Slice, tensors: Tensors) -> None:
    array = tensors[step.tensor]
    axis = step.axis % array.ndim
    if array.shape[axis] < step.stop:
        raise ValueError(f"slice: expected at least {step.stop} elements, got {list(array.shape)}")
    cut = (slice(None),) * axis + (slice(step.start, step.stop),)
    tensors[step.to or step.tensor] = np.ascontiguousarray(array[cut])


def normaliser(step: Normalise, rank: int) -> Callable[[Tensors], None]:
    """With the constants in the shape that the tensor needs, made once."""
    trailing = (1,) * (rank - 1 - step.axis % rank)
    mean = np.array(step.mean, np.float32).reshape(-1, *trailing)
    scale = np.array(step.scale, np.float32).reshape(-1, *trailing)

    def normalise(tensors: Tensors) -> None:
        centred = np.subtract(tensors[step.tensor], mean, dtype=np.float32)
        np.divide(centred, scale, out=centred)
        tensors[step.to or step.tensor] = centred

    return normalise


def softmax(step: Softmax, tensors: Tensors) -> None:
    array = tensors[step.tensor]
    powers = np.exp(array - array.max(axis=step.axis, keepdims=True, initial=-np.inf))
    tensors[step.to or step.tensor] = powers / powers.sum(axis=step.axis, keepdims=True)


def sigmoid(step: Sigmoid, tensors: Tensors) -> None:
    array = tensors[step.tensor]
    small = np.exp(-np.abs(array))  # never overflows
    tensors[step.to or step.tensor] = np.where(array >= 0, 1 / (1 + small), small / (1 + small)).astype(array.dtype)


def argmax(step: ArgMax, tensors: Tensors) -> None:
    tensors[step.to or step.tensor] = np.asarray(tensors[step.tensor].argmax(axis=step.axis), np.int64)


def threshold(step: Threshold, tensors: Tensors) -> None:
    array = tensors[step.tensor]
    above = array >= step.at
    tensors[step.to or step.tensor] = np.where(above, array, array.dtype.type(0)) if step.keep else above


def top_k(step: TopK, labels: tuple[str, ...], tensors: Tensors) -> None:
    array = tensors[step.tensor]
    if array.shape[-1] < step.k:
        raise ValueError(f"top-k: expected at least {step.k} elements, got {list(array.shape)}")
    # Sorted from behind and read backwards, the first of equals comes first.
    backwards = array[..., ::-1].argsort(axis=-1, kind="stable")[..., : -step.k - 1 : -1]
    indices = np.ascontiguousarray(array.shape[-1] - 1 - backwards).astype(np.int64, copy=False)
    if step.values:
        tensors[step.values] = np.take_along_axis(array, indices, axis=-1)
    if step.indices:
        tensors[step.indices] = indices
    if step.names:
        names = np.array([label.encode() for label in labels], dtype=object)
        tensors[step.names] = names[indices]
