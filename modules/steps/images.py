"""Steps on images: decode, resize, letterbox, crop, and boxes back to the original picture. Pure values and checks.

Images are batches of UINT8 or FP32 in NHWC, or NCHW where `layout` says so. Where a size changes, pixel centres are
mapped to pixel centres: x_in = (x_out + 0.5) * in / out - 0.5, cut off at the edge, without smoothing first. That is
`half_pixel` of ONNX Resize and OpenCV's INTER_LINEAR; Pillow, which smooths when it makes smaller, gives other numbers.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from modules.steps.specs import FREE, MAX_SIDE, Specs, made, read, require
from modules.tensors import TensorSpec

Layout = Literal["NHWC", "NCHW"]
Method = Literal["nearest", "bilinear"]
PIXELS = ("UINT8", "FP32")
GEOMETRY = 6  # scale of x and y, where the picture begins (x, y), its original width and height


class Decode(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="decode"):
    """JPEG or PNG (one file per element of BYTES) to UINT8 NHWC. All pictures of a batch must have one size, unless
    `height` and `width` say to which they are made: stretched, letterboxed or, with `fit` crop, filled and cut.
    `geometry` names a tensor for where each picture went, see `scale-boxes`. `max_pixels` bounds one picture.
    """

    tensor: str
    to: str = ""
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    height: int = 0
    width: int = 0
    fit: Literal["stretch", "letterbox", "crop"] = "stretch"
    method: Method = "bilinear"
    value: float = 114.0
    geometry: str = ""
    max_pixels: int = 16_777_216

    @property
    def channels(self) -> int:
        return 1 if self.colour == "grey" else 3

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("decode", have, self.tensor, ("BYTES",), 1)
        whole = (self.height == 0) == (self.width == 0)
        require("decode", whole, f"expected height and width, or neither, got {self.height} and {self.width}")
        require("decode", 0 < self.max_pixels <= MAX_SIDE**2, f"expected max_pixels of 1 to {MAX_SIDE**2}")
        if self.height:
            _check_sides("decode", self.height, self.width)
        sides = (self.height or FREE, self.width or FREE)
        image = made(self.to or self.tensor, "UINT8", (spec.shape[0], *sides, self.channels))
        return (image, *_geometry(self.geometry, spec.shape[0]))


class Resize(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="resize"):
    """To `height` and `width`, whatever becomes of the proportions. Nearest rounds halves down, as ONNX does."""

    tensor: str
    height: int
    width: int
    to: str = ""
    method: Method = "bilinear"
    layout: Layout = "NHWC"
    geometry: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        return _placed("resize", self, have)


class Letterbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="letterbox"):
    """As large as fits into `height` and `width` in its proportions, centred, the rest filled with `value`."""

    tensor: str
    height: int
    width: int
    to: str = ""
    method: Method = "bilinear"
    layout: Layout = "NHWC"
    value: float = 114.0
    geometry: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        return _placed("letterbox", self, have)


class Crop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="crop"):
    """The middle of a picture that is at least this large."""

    tensor: str
    height: int
    width: int
    to: str = ""
    layout: Layout = "NHWC"

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("crop", have, self.tensor, rank=4)
        _check_sides("crop", self.height, self.width)
        high, wide = spec.shape[1:3] if self.layout == "NHWC" else spec.shape[2:4]
        fits = (high == FREE or high >= self.height) and (wide == FREE or wide >= self.width)
        require("crop", fits, f"expected at least {self.height} x {self.width} pixels, got {high} x {wide}")
        return (_sized(spec, self.to or self.tensor, self.height, self.width, self.layout),)


class ScaleBoxes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="scale-boxes"):
    """Boxes (x1, y1, x2, y2) in the model's picture, [n, boxes, 4], to pixels of the original one, cut off at its
    edges. `geometry` is the tensor that decode, resize or letterbox left.
    """

    tensor: str
    geometry: str
    to: str = ""

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("scale-boxes", have, self.tensor, ("FP32",), 3)
        require("scale-boxes", spec.shape[2] in (4, FREE), f"expected boxes of 4 numbers, got {list(spec.shape)}")
        kept = read("scale-boxes", have, self.geometry, ("FP32",), 2)
        require("scale-boxes", kept.shape[1] == GEOMETRY, f"expected {self.geometry} as a step before has left it")
        return (made(self.to or self.tensor, "FP32", (*spec.shape[:2], 4)),)


def _check_sides(step: str, height: int, width: int) -> None:
    fits = 1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE
    require(step, fits, f"expected sides of 1 to {MAX_SIDE} pixels, got {height} x {width}")


def _placed(what: str, step: Resize | Letterbox, have: Specs) -> tuple[TensorSpec, ...]:
    """The picture in its new size, and where it lies in it where that is asked for."""
    spec = read(what, have, step.tensor, PIXELS, 4)
    _check_sides(what, step.height, step.width)
    image = _sized(spec, step.to or step.tensor, step.height, step.width, step.layout)
    return (image, *_geometry(step.geometry, spec.shape[0]))


def _sized(spec: TensorSpec, name: str, height: int, width: int, layout: Layout) -> TensorSpec:
    first, *_, last = spec.shape
    shape = (first, height, width, last) if layout == "NHWC" else (first, spec.shape[1], height, width)
    return made(name, spec.datatype, shape)


def _geometry(name: str, rows: int) -> tuple[TensorSpec, ...]:
    return (made(name, "FP32", (rows, GEOMETRY)),) if name else ()
