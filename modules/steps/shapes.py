"""Steps that change how numbers are written or how they lie. Pure values and checks."""

from __future__ import annotations

import math

import msgspec

from modules.steps.specs import FREE, NUMBERS, Specs, axis_of, made, read, require
from modules.tensors import TensorSpec

MAX_RANK = 8


class Cast(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="cast"):
    """Another datatype. To a narrower integer: rounded to even, then cut off at its bounds; NaN becomes 0."""

    tensor: str
    datatype: str
    to: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("cast", have, self.tensor)
        require("cast", self.datatype in NUMBERS, f"expected a datatype of numbers, got {self.datatype!r}")
        return (made(self.to or self.tensor, self.datatype, spec.shape, spec.labels),)


class Transpose(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="transpose"):
    """Axes in another order: (0, 3, 1, 2) makes NCHW of NHWC, (0, 2, 3, 1) the reverse."""

    tensor: str
    axes: tuple[int, ...]
    to: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("transpose", have, self.tensor)
        fits = sorted(self.axes) == list(range(len(spec.shape)))
        require("transpose", fits, f"expected each axis of {list(spec.shape)} once, got {list(self.axes)}")
        return (made(self.to or self.tensor, spec.datatype, tuple(spec.shape[axis] for axis in self.axes)),)


class Reshape(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="reshape"):
    """The same elements in another shape. One size may be -1: what is left; a size of 0 is the same as before."""

    tensor: str
    shape: tuple[int, ...]
    to: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("reshape", have, self.tensor)
        sizes = self.shape
        fits = 0 < len(sizes) <= MAX_RANK and sizes.count(FREE) <= 1 and min(sizes) >= FREE
        require("reshape", fits, f"expected at most {MAX_RANK} sizes and one -1, got {list(sizes)}")
        inherits = all(i < len(spec.shape) for i, size in enumerate(sizes) if size == 0)
        require("reshape", inherits, f"expected 0 only where {list(spec.shape)} has a size, got {list(sizes)}")
        # Sizes of 0 cancel out on both sides; what is left can be compared where nothing is free.
        kept = [size for i, size in enumerate(spec.shape) if not (i < len(sizes) and sizes[i] == 0)]
        new = [size for size in sizes if size != 0]
        shape = [spec.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        if FREE not in kept:
            total, known = math.prod(kept), math.prod(size for size in new if size != FREE)
            fits = total % known == 0 if FREE in new else total == known
            require("reshape", fits, f"expected {list(spec.shape)} to fill {list(sizes)}")
            if FREE in new:
                shape[sizes.index(FREE)] = total // known
        return (made(self.to or self.tensor, spec.datatype, tuple(shape)),)


class Slice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="slice"):
    """The elements `start` to before `stop` of one axis, such as the boxes in what a detector gives."""

    tensor: str
    axis: int
    start: int
    stop: int
    to: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("slice", have, self.tensor)
        axis = axis_of("slice", spec, self.axis)
        size = spec.shape[axis]
        fits = 0 <= self.start < self.stop and (size == FREE or self.stop <= size)
        require("slice", fits, f"expected 0 <= start < stop <= {size}, got {self.start} and {self.stop}")
        shape = (*spec.shape[:axis], self.stop - self.start, *spec.shape[axis + 1 :])
        return (made(self.to or self.tensor, spec.datatype, shape),)


class Normalise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="normalise"):
    """(x - mean) / scale as FP32. One number each, or one per element of `axis`. Reads `tensor`, writes `to`."""

    tensor: str
    to: str = ""
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)
    axis: int = -1

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("normalise", have, self.tensor)
        size = spec.shape[axis_of("normalise", spec, self.axis)]
        for name, values in (("mean", self.mean), ("scale", self.scale)):
            fits = len(values) in (1, size) or (size == FREE and len(values) > 0)
            require("normalise", fits, f"expected {name} as 1 or {size} numbers, got {len(values)}")
            require("normalise", all(map(math.isfinite, values)), f"expected {name} of finite numbers")
        require("normalise", 0.0 not in self.scale, "expected no scale of 0")
        return (made(self.to or self.tensor, "FP32", spec.shape, spec.labels),)
