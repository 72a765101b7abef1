"""Bytes of a file or a message to a module's inputs. Whatever does not fit raises ValueError, with what was expected.

`auto` goes by what the bytes say of themselves: a JPEG or PNG, JSON where they begin with a brace or bracket and are
JSON, NumPy's own file; otherwise text for an input of BYTES, and the tensor's own bytes for any other.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import msgspec
import numpy as np

from agent.backends import Array, BackendError
from agent.backends.steps.pictures import decoded
from agent.endpoint.codec import DTYPES, from_bytes, from_json
from agent.endpoint.exchange import Refused
from agent.endpoint.oip import Parser
from modules.errors import MALFORMED
from modules.manifest import Manifest
from modules.sources import Content, target
from modules.tensors import ITEM_SIZE, TensorSpec

_PICTURE = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_NUMPY = b"\x93NUMPY"


class Reader:
    """Of one source."""

    def __init__(self, manifest: Manifest, name: str, content: Content, max_pixels: int = 16_777_216) -> None:
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._spec = target(name, manifest.inputs)
        self._content = content
        self._parser = Parser(manifest, frozenset())
        self._max_pixels = max_pixels

    def read(self, data: bytes) -> dict[str, Array]:
        """Every input. Raises ValueError."""
        try:
            return self._read(data, self._content if self._content != "auto" else self._guessed(data))
        except (Refused, BackendError, *MALFORMED) as error:
            raise ValueError(str(error)[:500]) from None

    def _guessed(self, data: bytes) -> str:
        if data[:1] in (b"{", b"["):
            return "json or else"
        if self._spec is None:
            return "json"
        if data.startswith(_NUMPY):
            return "numpy"
        is_picture = data.startswith(_PICTURE) and len(self._spec.shape) == 4
        return "image" if is_picture else self._plain(self._spec)

    def _read(self, data: bytes, content: str) -> dict[str, Array]:
        if content == "json":
            return self._of_json(data)
        if content == "json or else":
            try:
                return self._of_json(data)
            except (Refused, ValueError, *MALFORMED):
                if self._spec is None or not self._could_be_plain(self._spec, data):
                    raise
                content = self._plain(self._spec)
        if self._spec is None or len(self._inputs) != 1:
            raise ValueError(f"expected JSON with {', '.join(self._inputs)}, got {content}")
        spec = self._spec
        match content:
            case "text":
                return {spec.name: _one(data)}
            case "image":
                return {spec.name: self._picture(spec, data)}
            case "numpy":
                return {spec.name: checked(spec, _npy(data))}
        return {spec.name: _raw(spec, data)}

    def _plain(self, spec: TensorSpec) -> str:
        return "text" if spec.datatype == "BYTES" else "raw"

    def _could_be_plain(self, spec: TensorSpec, data: bytes) -> bool:
        return spec.datatype == "BYTES" or (_row_size(spec) > 0 and len(data) % _row_size(spec) == 0)

    def _of_json(self, data: bytes) -> dict[str, Array]:
        """An infer request, an object with a nested list per input, or the list of the only input."""
        if data[:1] == b"{":
            values = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            if "inputs" in values and "inputs" not in self._inputs:
                return dict(self._parser.parse(data, None).inputs)
        elif self._spec is not None:
            values = {self._spec.name: msgspec.Raw(data)}
        else:
            raise ValueError(f"expected an object with {', '.join(self._inputs)}, got a list")
        if set(values) != set(self._inputs):
            raise ValueError(f"expected {', '.join(self._inputs)}, got {', '.join(values)[:200]}")
        return {name: _nested(spec, bytes(values[name])) for name, spec in self._inputs.items()}

    def _picture(self, spec: TensorSpec, data: bytes) -> Array:
        if spec.datatype == "BYTES":
            return _one(data)
        return checked(spec, decoded(data, "grey" if spec.shape[3] == 1 else "rgb", self._max_pixels)[np.newaxis])


def checked(spec: TensorSpec, array: Array) -> Array:
    """The array, if it is one of the input's datatype and shape. Raises ValueError."""
    wanted = DTYPES[spec.datatype]
    fits = array.dtype == wanted and array.ndim == len(spec.shape)
    if not fits or any(want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)):
        got = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{spec.name}: expected {spec.datatype} {list(spec.shape)}, got {got}")
    if 0 in array.shape:
        raise ValueError(f"{spec.name}: expected some rows, got {list(array.shape)}")
    return array


def rows_of(inputs: Mapping[str, Array], batched: tuple[str, ...]) -> int:
    """Raises ValueError where inputs have different numbers of rows."""
    if not batched:
        return 1
    rows = len(inputs[batched[0]])
    if any(len(inputs[name]) != rows for name in batched[1:]):
        raise ValueError(f"expected the same number of rows in {', '.join(batched)}")
    return rows


def _one(data: bytes) -> Array:
    array = np.empty(1, object)
    array[0] = data
    return array


def _row_size(spec: TensorSpec) -> int:
    """Bytes of one row, or of all where the first size is not free; 0 where that is not known."""
    sizes = spec.shape[1:] if spec.shape[:1] == (-1,) else spec.shape
    return 0 if -1 in sizes else math.prod(sizes) * ITEM_SIZE.get(spec.datatype, 0)


def _raw(spec: TensorSpec, data: bytes) -> Array:
    size = _row_size(spec)
    if not size or not data or len(data) % size or (spec.shape[:1] != (-1,) and len(data) != size):
        raise ValueError(f"{spec.name}: expected rows of {size} bytes for {list(spec.shape)}, got {len(data)} bytes")
    shape = (len(data) // size, *spec.shape[1:]) if spec.shape[:1] == (-1,) else spec.shape
    return from_bytes(spec.name, spec.datatype, shape, data)


def _nested(spec: TensorSpec, data: bytes) -> Array:
    """A list as nested as the shape, or one row of it."""
    shape: list[int] = []
    values: object = msgspec.json.decode(data)
    while isinstance(values, list) and len(shape) <= len(spec.shape):
        shape.append(len(values))
        values = values[0] if values else None
    if len(shape) == len(spec.shape) - 1 and spec.shape[:1] in ((-1,), (1,)):
        shape, data = [1, *shape], b"[" + data + b"]"
    return checked(spec, from_json(spec.name, spec.datatype, tuple(shape), data))


def _npy(data: bytes) -> Array:
    """One array of numbers as NumPy saves it: never an archive, never an object. Raises ValueError."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"expected .npy of version 1 or 2, got {version}")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(file)
    if dtype.hasobject:
        raise ValueError("expected numbers, got Python objects")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if by_columns else "C")
