"""What is taken out of a prediction before it leaves the worker: by tensor, or by one feature of it. Pure.

Arrays of one row in, arrays of one row out; what is given is never written to. A policy that speaks of what the module
does not have raises PolicyError when it is set, and nothing is sampled: to leave out is safe, to let through is not.
Hashes are BLAKE2b keyed with a secret of this device and salted by the policy, so that nobody who does not hold the
device can try values out. Source: RFC 7693.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from agent.backends import Array
from agent.sampling.features import Names, Place, PolicyError
from modules.sampling import Redaction, SamplingPolicy
from modules.tensors import TensorSpec
from modules.windows import Numeric

HASH_BYTES = 8
# Whole numbers that a floating-point type holds exactly: what a hash is cut to.
_EXACT_BITS = {"FP16": 11, "FP32": 24, "FP64": 53}
_COLOURS = (1, 3, 4)
_Change = Callable[[Array], Array]


@dataclass(frozen=True)
class Redacted:
    """A row after redaction. `dropped` are tensors that do not leave; `done` says what was done, by name."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]
    dropped: frozenset[str]
    done: dict[str, str]


class Redactor:
    """The redaction of a policy for one module. Raises PolicyError. `key` is the device's secret."""

    def __init__(self, policy: SamplingPolicy, names: Names, key: bytes) -> None:
        redact = policy.redact or {}
        self._done = {name: how.action for name, how in redact.items()}
        self._changes: dict[str, list[_Change]] = {}
        dropped: set[str] = set()
        for name, how in redact.items():
            place = names.find(name)
            if how.action == "drop" and place.index < 0:
                dropped.add(place.spec.name)
                continue
            change = _change(place, how, names, _Hash(key, policy.salt))
            self._changes.setdefault(place.spec.name, []).append(change)
        self._dropped = frozenset(dropped)

    def apply(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Redacted:
        """One row, as it may leave."""
        left, right = (self._side(side) for side in (inputs, outputs))
        return Redacted(left, right, self._dropped, dict(self._done))

    def _side(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._changed(name, array) for name, array in arrays.items() if name not in self._dropped}

    def _changed(self, name: str, array: Array) -> Array:
        for change in self._changes.get(name, ()):
            array = change(array)
        return array


class _Hash:
    def __init__(self, key: bytes, salt: str) -> None:
        self._key = key[: hashlib.blake2b.MAX_KEY_SIZE]
        self._salt = hashlib.blake2b(salt.encode(), digest_size=hashlib.blake2b.SALT_SIZE).digest()

    def of(self, value: object) -> bytes:
        text = value if isinstance(value, bytes) else repr(value).encode()
        return hashlib.blake2b(text, digest_size=HASH_BYTES, key=self._key, salt=self._salt).digest()


def _change(place: Place, how: Redaction, names: Names, hashed: _Hash) -> _Change:
    if place.take != "column":
        text = f"sampling.redact: expected a tensor or one of its elements, got {place.take} of {place.spec.name}"
        raise PolicyError(text)
    if how.action == "blur":
        return _blur(place, how)
    if how.action == "coarsen":
        return _coarsen(place, how, names)
    return _at(place, _blank if how.action == "drop" else lambda values: _hashes(values, place.spec, hashed))


def _at(place: Place, work: _Change) -> _Change:
    """`work` on the flat values of the place, in a copy."""

    def change(array: Array) -> Array:
        array = array.copy()
        values = array.reshape(-1)
        part = values[place.index : place.index + 1] if place.index >= 0 else values
        part[:] = work(part)
        return array

    return change


def _blank(values: Array) -> Array:
    """As missing, or as nothing where a type has no missing."""
    fill: object = b"" if values.dtype == object else math.nan if values.dtype.kind == "f" else 0
    return np.full(values.shape, fill, values.dtype)


def _hashes(values: Array, spec: TensorSpec, hashed: _Hash) -> Array:
    digests = [hashed.of(value) for value in values.tolist()]
    if values.dtype == object:
        texts = np.empty(len(digests), object)
        texts[:] = [digest.hex().encode() for digest in digests]
        return texts
    bits = _EXACT_BITS.get(spec.datatype, 8 * values.dtype.itemsize - (values.dtype.kind == "i"))
    bits = 1 if spec.datatype == "BOOL" else bits
    return np.array([int.from_bytes(digest, "big") % 2**bits for digest in digests]).astype(values.dtype)


def _coarsen(place: Place, how: Redaction, names: Names) -> _Change:
    if place.spec.datatype in ("BYTES", "BOOL"):
        raise PolicyError(f"sampling.redact: expected numbers to coarsen, got {place.spec.datatype} {place.spec.name}")
    if how.step:
        return _at(place, lambda values: _stepped(values, how.step))
    known = [place.known] if place.index >= 0 else names.columns(place.spec.name)
    bins = [feature for feature in known if isinstance(feature, Numeric)]
    size = math.prod(abs(s) for s in place.spec.shape[1:]) if place.index < 0 else 1
    if len(bins) != size:
        text = f"sampling.redact: expected a step, for {place.spec.name} has no bins in a reference profile"
        raise PolicyError(text)
    changes = [_at(Place(place.spec, place.is_input, f.index), _binned(np.array(f.edges))) for f in bins]
    return lambda array: _all(changes, array)


def _all(changes: list[_Change], array: Array) -> Array:
    for change in changes:
        array = change(array)
    return array


def _stepped(values: Array, step: float) -> Array:
    wide = np.floor(values.astype(np.float64) / step) * step
    return wide.astype(values.dtype)


def _binned(edges: Array) -> _Change:
    """The lower end of the bin; what is outside stays outside by no more than the nearest value that is."""

    def work(values: Array) -> Array:
        wide = values.astype(np.float64)
        place = np.clip(np.searchsorted(edges, wide, side="right") - 1, 0, len(edges) - 2)
        low = edges[place]
        low = np.where(wide < edges[0], np.nextafter(edges[0], -np.inf), low)
        low = np.where(wide > edges[-1], np.nextafter(edges[-1], np.inf), low)
        return np.where(np.isnan(wide), wide, low).astype(values.dtype)

    return work


def _blur(place: Place, how: Redaction) -> _Change:
    """Squares of one colour. Pixels are the two dimensions beside the colours, first or last; without colours the last
    two.
    """
    spec = place.spec
    if place.index >= 0 or spec.datatype in ("BYTES", "BOOL") or len(spec.shape) < 2:
        raise PolicyError(f"sampling.redact: expected an image to blur, got {spec.name} {spec.datatype} {spec.shape}")
    last = len(spec.shape) >= 3 and spec.shape[-1] in _COLOURS

    def change(array: Array) -> Array:
        pixels = array.copy()
        image = pixels if last else pixels[..., np.newaxis]  # (..., height, width, colours)
        height, width = image.shape[-3:-1]
        top, left, tall, wide = how.region or (0, 0, height, width)
        bottom, right = min(height, top + tall), min(width, left + wide)
        step = int(how.step) or max(tall, wide)
        for y in range(top, bottom, step):
            for x in range(left, right, step):
                square = image[..., y : min(y + step, bottom), x : min(x + step, right), :]
                square[:] = square.astype(np.float64).mean(axis=(-3, -2), keepdims=True).astype(array.dtype)
        return pixels

    return change
