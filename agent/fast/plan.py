"""What a request over shared memory asks for, checked against the manifest, as views of the client's area.

A client asks for the same shapes again and again, so a plan is made once for the bytes of a request and kept by
them: its checks hold as long as the mapping stands. Made by `seat`.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping

import numpy as np

from agent.backends import Array
from agent.endpoint.codec import DTYPES, from_bytes, to_bytes
from agent.endpoint.exchange import Refused
from agent.fast.wire import ALIGN, Body, Placed, aligned, layout, read_body
from modules.errors import TensorError
from modules.manifest import Manifest
from modules.tensors import ITEM_SIZE, TensorSpec, served

# Copied before the run: it costs less than a microsecond, and whoever watches the prediction needs a copy anyway.
SMALL_BYTES = 16 * 1024
# Runtimes check indices first and use them afterwards: they must not change in between.
INDICES = frozenset({"BOOL", "INT16", "INT32", "INT64", "UINT16", "UINT32", "UINT64", "BYTES"})


class MoreRoom(Exception):
    """The outputs do not fit into the area; `size` is what it would have to be."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Plan:
    """One form of request in one area. `rows` is how many predictions it asks for."""

    def __init__(self, manifest: Manifest, area: mmap.mmap, body: bytes) -> None:
        """Raises WireError and Refused."""
        asked = read_body(body)
        self._area = area
        self._checked(manifest, asked)
        specs = [(manifest.inputs[placed.tensor], placed) for placed in asked.inputs]
        views = {spec.name: _view(area, spec, placed) for spec, placed in specs}
        self._copied = [
            (spec, placed, views[spec.name])
            for spec, placed in specs
            if placed.size <= SMALL_BYTES or spec.datatype in INDICES
        ]
        copied = {spec.name for spec, _, _ in self._copied}
        self._views = {name: view for name, view in views.items() if name not in copied}
        self.in_place = frozenset(self._views)  # the names of the inputs that are not copied
        self.rows = next((p.shape[0] for s, p in specs if s.shape and s.shape[0] == -1), 1)
        self.tried = False  # whether it was tried to bind it
        self.views = views
        self.inputs_at = specs
        self._at = asked.at
        outputs = served(manifest.outputs)
        self.outputs = [(n, outputs[n]) for n in asked.outputs or range(len(outputs))]
        self._texts = any(spec.datatype == "BYTES" for _, spec in self.outputs)
        self._shapes: list[tuple[int, ...]] = []
        self.outputs_at: list[Placed] = []
        self.targets: list[Array] = []
        self._layout = b""

    def inputs(self) -> dict[str, Array]:
        """Copies of what is small, views of the area of what is not. Raises Refused."""
        arrays = dict(self._views)
        for spec, placed, view in self._copied:
            arrays[spec.name] = view.copy() if view.dtype != np.uint8 else _decoded(spec, placed, view)
        return arrays

    def write(self, outputs: Mapping[str, Array]) -> bytes:
        """Puts the outputs into the area, and says where. Raises MoreRoom."""
        if self._texts:
            return self._write_texts(outputs)
        arrays = [outputs[spec.name] for _, spec in self.outputs]
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            self._lay_out(shapes)
        for target, array in zip(self.targets, arrays, strict=True):
            target[...] = array
        return self._layout

    def _checked(self, manifest: Manifest, asked: Body) -> None:
        names = [spec.name for spec in manifest.inputs]
        found = sorted(placed.tensor for placed in asked.inputs)
        if found != list(range(len(names))):
            got = ", ".join(names[i] if i < len(names) else f"number {i}" for i in found) or "none"
            raise Refused(400, f"inputs: expected {', '.join(names)}, got {got}")
        count = len(served(manifest.outputs))
        if any(index >= count for index in asked.outputs) or _twice(asked.outputs):
            raise Refused(400, f"outputs: expected each of {count} at most once, got {asked.outputs}")
        end = 0
        for placed in asked.inputs:
            _check_place(manifest.inputs[placed.tensor], placed, len(self._area))
            end = max(end, placed.offset + placed.size)
        if asked.at % ALIGN or not end <= asked.at <= len(self._area):
            raise Refused(400, f"outputs: expected a place for them behind the inputs, got {asked.at}")

    def _lay_out(self, shapes: list[tuple[int, ...]]) -> None:
        placed, at = [], self._at
        for (index, spec), shape in zip(self.outputs, shapes, strict=True):
            size = math.prod(shape) * ITEM_SIZE[spec.datatype]
            placed.append(Placed(index, shape, at, size))
            at = aligned(at + size)
        if at > len(self._area):
            raise MoreRoom(at)
        self.targets = [_view(self._area, s, p) for (_, s), p in zip(self.outputs, placed, strict=True)]
        self._shapes, self.outputs_at, self._layout = shapes, placed, layout(placed)

    def _write_texts(self, outputs: Mapping[str, Array]) -> bytes:
        """Text is of another length each time."""
        placed, at, parts = [], self._at, []
        for index, spec in self.outputs:
            data = to_bytes(spec.datatype, outputs[spec.name])
            placed.append(Placed(index, outputs[spec.name].shape, at, len(data)))
            parts.append((at, data))
            at = aligned(at + len(data))
        if at > len(self._area):
            raise MoreRoom(at)
        for offset, data in parts:
            self._area[offset : offset + len(data)] = data
        return layout(placed)


def _check_place(spec: TensorSpec, placed: Placed, room: int) -> None:
    fits = len(placed.shape) == len(spec.shape)
    if not fits or any(n < 1 or want not in (-1, n) for want, n in zip(spec.shape, placed.shape, strict=True)):
        raise Refused(400, f"input {spec.name}: expected shape {list(spec.shape)}, got {list(placed.shape)[:16]}")
    size = math.prod(placed.shape) * ITEM_SIZE.get(spec.datatype, 4)
    if placed.size < size or (placed.size > size and spec.datatype != "BYTES"):
        raise Refused(400, f"input {spec.name}: expected {size} bytes, got {placed.size}")
    if placed.offset % ALIGN or placed.offset + placed.size > room:
        raise Refused(
            400, f"input {spec.name}: expected a place within {room} bytes, got {placed.size} at {placed.offset}"
        )


def _twice(indices: tuple[int, ...]) -> bool:
    return len(set(indices)) != len(indices)


def _view(area: mmap.mmap, spec: TensorSpec, placed: Placed) -> Array:
    """Of inputs that are no numbers: their bytes."""
    if spec.datatype in ("BOOL", "BYTES"):
        raw: Array = np.frombuffer(area, np.uint8, placed.size, placed.offset)
        return raw if spec.datatype == "BYTES" else raw.reshape(placed.shape)
    array: Array = np.frombuffer(area, DTYPES[spec.datatype], math.prod(placed.shape), placed.offset)
    return array.reshape(placed.shape)


def _decoded(spec: TensorSpec, placed: Placed, view: Array) -> Array:
    if spec.datatype == "UINT8":
        return view.copy()
    try:
        return from_bytes(spec.name, spec.datatype, placed.shape, view.tobytes())
    except TensorError as error:
        raise Refused(400, f"input {error}") from None
