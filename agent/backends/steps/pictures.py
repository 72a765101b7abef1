"""Steps on pictures. The convention of sizes stands in `modules.steps.images`; decoding alone needs OpenCV.

Weights are FP32; UINT8 pictures are rounded to even and cut off at 0 and 255.
"""

from __future__ import annotations

import struct
from types import ModuleType

import numpy as np

from agent.backends import Array, BackendError
from modules.steps import Crop, Decode, Letterbox, Resize
from modules.steps.images import Layout, Method

Tensors = dict[str, Array]
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # JPEG's markers of a frame
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # those without a length


def opencv() -> ModuleType:
    """Raises BackendError where it is not installed."""
    try:
        import cv2
    except ImportError as error:
        text = f"expected OpenCV to decode pictures (pip install 'mooring[video]'), got: {error}"
        raise BackendError("load-failed", text) from error
    cv2.setNumThreads(1)
    return cv2


class Decoder:
    """Decodes the pictures of a batch; one that is too large by its own words is not begun."""

    def __init__(self, step: Decode, limit_bytes: int) -> None:
        self._step = step
        self._most = min(step.max_pixels, limit_bytes // step.channels)

    def __call__(self, tensors: Tensors) -> None:
        step = self._step
        pictures, places = [], []
        for data in tensors[step.tensor].ravel():
            picture = decoded(data, step.colour, self._most)[np.newaxis]
            picture, where = self._fitted(picture) if step.height else (picture, whole(picture.shape[1:3]))
            pictures.append(picture)
            places.append(where)
        sizes = {picture.shape[1:3] for picture in pictures}
        if len(sizes) > 1:
            raise ValueError(f"decode: expected pictures of one size in a batch, got {sorted(sizes)[:4]}")
        tensors[step.to or step.tensor] = pictures[0] if len(pictures) == 1 else np.concatenate(pictures)
        if step.geometry:
            tensors[step.geometry] = np.array(places, np.float32)

    def _fitted(self, picture: Array) -> tuple[Array, list[float]]:
        step = self._step
        if step.fit == "letterbox":
            return letterbox(picture, step.height, step.width, step.method, step.value)
        if step.fit == "crop":
            return filled(picture, step.height, step.width, step.method)
        where = stretched(picture.shape[1:3], step.height, step.width)
        return resize(picture, step.height, step.width, step.method), where


def decoded(data: bytes, colour: str, max_pixels: int) -> Array:
    """A picture as UINT8 [height, width, channels]. Raises ValueError."""
    width, height = picture_size(data)
    if width * height > max_pixels:
        raise ValueError(f"decode: expected at most {max_pixels} pixels, got {width} x {height}")
    cv2 = opencv()
    grey = colour == "grey"
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ValueError(f"decode: {str(error).strip()[:200]}") from None
    if picture is None:
        raise ValueError(f"decode: expected a whole JPEG or PNG file, got {len(data)} bytes that are none")
    if grey:
        return np.asarray(picture)[:, :, np.newaxis]
    return np.ascontiguousarray(picture[:, :, ::-1]) if colour == "rgb" else np.asarray(picture)


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height by the file's own header. Raises ValueError for what is neither PNG nor JPEG."""
    if data[:8] == _PNG and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return width, height
    at = 2 if data[:2] == _JPEG else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SIZES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker == 0xFF:
            at += 1
        else:
            at += 2 if marker in _ALONE else 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]
    raise ValueError(f"decode: expected a JPEG or PNG file, got {len(data)} bytes that begin with {data[:8].hex(' ')}")


def resize_step(step: Resize, tensors: Tensors) -> None:
    picture = channels_last(tensors[step.tensor], step.layout)
    made = resize(picture, step.height, step.width, step.method)
    tensors[step.to or step.tensor] = as_laid_out(made, step.layout)
    if step.geometry:
        where = stretched(picture.shape[1:3], step.height, step.width)
        tensors[step.geometry] = np.tile(np.array(where, np.float32), (len(picture), 1))


def letterbox_step(step: Letterbox, tensors: Tensors) -> None:
    picture = channels_last(tensors[step.tensor], step.layout)
    made, where = letterbox(picture, step.height, step.width, step.method, step.value)
    tensors[step.to or step.tensor] = as_laid_out(made, step.layout)
    if step.geometry:
        tensors[step.geometry] = np.tile(np.array(where, np.float32), (len(picture), 1))


def crop_step(step: Crop, tensors: Tensors) -> None:
    picture = channels_last(tensors[step.tensor], step.layout)
    tensors[step.to or step.tensor] = as_laid_out(cropped(picture, step.height, step.width), step.layout)


def resize(picture: Array, height: int, width: int, method: Method) -> Array:
    """[n, h, w, c] to [n, height, width, c]."""
    high, wide = picture.shape[1:3]
    if 0 in picture.shape:
        raise ValueError(f"resize: expected a picture, got {list(picture.shape)}")
    if (high, wide) == (height, width):
        return picture
    if method == "nearest":
        return picture[:, _nearest(high, height)][:, :, _nearest(wide, width)]
    made = _between(_between(picture, 1, height), 2, width)
    return np.rint(made).clip(0, 255).astype(np.uint8) if picture.dtype == np.uint8 else made


def letterbox(picture: Array, height: int, width: int, method: Method, value: float) -> tuple[Array, list[float]]:
    """The picture, and where it went: see GEOMETRY."""
    high, wide = picture.shape[1:3]
    inner_high, inner_wide = _scaled(high, wide, min(height / high, width / wide), height, width)
    top, left = (height - inner_high) // 2, (width - inner_wide) // 2
    made = np.full((len(picture), height, width, picture.shape[3]), value, picture.dtype)
    made[:, top : top + inner_high, left : left + inner_wide] = resize(picture, inner_high, inner_wide, method)
    return made, [inner_wide / wide, inner_high / high, left, top, wide, high]


def filled(picture: Array, height: int, width: int, method: Method) -> tuple[Array, list[float]]:
    """As small as fills the size in its proportions, and the middle of that."""
    high, wide = picture.shape[1:3]
    factor = max(height / high, width / wide)
    outer_high, outer_wide = max(height, round(high * factor)), max(width, round(wide * factor))
    if outer_high * outer_wide > 64 * max(height * width, high * wide):
        raise ValueError(f"decode: expected a picture of usual proportions, got {wide} x {high}")
    left, top = (outer_wide - width) // 2, (outer_high - height) // 2
    made = cropped(resize(picture, outer_high, outer_wide, method), height, width)
    return made, [outer_wide / wide, outer_high / high, -left, -top, wide, high]


def cropped(picture: Array, height: int, width: int) -> Array:
    high, wide = picture.shape[1:3]
    if high < height or wide < width:
        raise ValueError(f"crop: expected at least {height} x {width} pixels, got {high} x {wide}")
    top, left = (high - height) // 2, (wide - width) // 2
    return np.ascontiguousarray(picture[:, top : top + height, left : left + width])


def whole(size: tuple[int, ...]) -> list[float]:
    high, wide = size
    return [1.0, 1.0, 0.0, 0.0, wide, high]


def stretched(size: tuple[int, ...], height: int, width: int) -> list[float]:
    high, wide = size
    return [width / wide, height / high, 0.0, 0.0, wide, high]


def channels_last(array: Array, layout: Layout) -> Array:
    return array if layout == "NHWC" else array.transpose(0, 2, 3, 1)


def as_laid_out(array: Array, layout: Layout) -> Array:
    return array if layout == "NHWC" else np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _scaled(high: int, wide: int, factor: float, height: int, width: int) -> tuple[int, int]:
    return max(1, min(height, round(high * factor))), max(1, min(width, round(wide * factor)))


def _centres(old: int, new: int) -> Array:
    return (np.arange(new) + 0.5) * (old / new) - 0.5


def _nearest(old: int, new: int) -> Array:
    """Halves are rounded down."""
    nearest: Array = np.ceil(_centres(old, new) - 0.5).astype(np.intp).clip(0, old - 1)
    return nearest


def _between(array: Array, axis: int, new: int) -> Array:
    """Linear along one axis, as FP32."""
    old = array.shape[axis]
    if old == new:
        return array.astype(np.float32, copy=False)
    at = _centres(old, new).clip(0, old - 1)
    below = np.floor(at).astype(np.intp)
    above = np.minimum(below + 1, old - 1)
    shape = [1] * array.ndim
    shape[axis] = new
    weight = (at - below).astype(np.float32).reshape(shape)
    low: Array = array.take(below, axis=axis).astype(np.float32)
    high = array.take(above, axis=axis)
    difference = np.subtract(high, low, dtype=np.float32)
    difference *= weight
    low += difference
    return low
