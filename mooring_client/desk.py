"""Requests over shared memory without the socket: where tensors lie in the area, and what the packets say.

What was once laid out for some shapes is kept, so that a request like the last one costs a copy of its tensors and
nothing else. Used by the plain and the asyncio client alike; one at a time.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mooring_client import wire
from mooring_client.errors import ClientError, Refused
from mooring_client.prediction import Prediction
from mooring_client.tensors import ITEM_SIZE, Spec, Tensor, check, check_names
from mooring_client.wire import MoreRoom, Placed, Welcome, aligned

if TYPE_CHECKING:
    from mooring_client.arrays import Array

MAX_KEPT = 64
_DONE = wire.DONE[0]  # an answer is read here: at the speed of a small model one call more is seen
PAGE = mmap.PAGESIZE
_GUESSED_ROWS = 8  # for the outputs of the first area
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class _Plan(NamedTuple):
    """Where the inputs of a request go, and the packet's body that says so. `forms`: name, shape, dtype, and the slot,
    an array or a memoryview over the area.
    """

    wanted: Sequence[str]
    forms: tuple[tuple[str, tuple[int, ...], object, Any], ...]
    body: bytes
    arrays: bool


class Desk:
    """The module at the other end, and an area shared with it. `handle` is the area's descriptor, to be sent once."""

    def __init__(self, welcome: Welcome, size: int = 0, copy: bool = True) -> None:
        """`size` is at least what the area has; `copy` whether outputs are the caller's own."""
        self.welcome = welcome
        self._copy = copy
        self._inputs = {spec.name: (number, spec) for number, spec in enumerate(welcome.inputs)}
        self._outputs = {spec.name: number for number, spec in enumerate(welcome.outputs)}
        self.handle = -1
        self.size = 0
        self.make(size or _first_size(welcome))

    def make(self, size: int) -> bytes:
        """Another area, of `size` bytes or some more; returns the packet that announces it. Raises Refused(413)."""
        if size > self.welcome.area_bytes:
            raise Refused(413, f"expected tensors of at most {self.welcome.area_bytes} bytes in all, got {size}")
        self.close()
        self.size = min(self.welcome.area_bytes, _power(size))
        self.handle = os.memfd_create("mooring-client", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.handle, self.size)
        fcntl.fcntl(self.handle, fcntl.F_ADD_SEALS, _SEALS)
        self._area = mmap.mmap(self.handle, self.size)
        self._memory = memoryview(self._area)
        self._plans: dict[object, _Plan] = {}
        self._last: _Plan | None = None
        self._layouts: dict[tuple[bytes, bool], list[tuple[Spec, Placed, Any]]] = {}
        self._shown: list[tuple[str, Array]] | None = None  # the outputs of the last answer, where all are numbers
        self._shown_by = b""
        return self.announcement

    @property
    def announcement(self) -> bytes:
        return wire.area(self.size)

    def close(self) -> None:
        """The memory itself goes once no array shows it any more."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def prepare(self, inputs: Mapping[str, Any], wanted: Sequence[str]) -> tuple[bytes, bool]:
        """Puts the inputs into the area. The packet's body, and whether outputs are to be arrays. Raises Refused(400)
        and MoreRoom.
        """
        last = self._last
        if last is not None and last.wanted == wanted and len(inputs) == len(last.forms):
            for (name, value), (known, shape, dtype, slot) in zip(inputs.items(), last.forms, strict=True):
                if name != known or getattr(value, "dtype", None) is not dtype or value.shape != shape:
                    break
                if slot is not value:
                    slot[...] = value
            else:
                return last.body, True
        return self._found(inputs, wanted)

    def _found(self, inputs: Mapping[str, Any], wanted: Sequence[str]) -> tuple[bytes, bool]:
        """A request that is not like the last one."""
        try:
            key = (wanted, *[(name, value.shape, value.dtype) for name, value in inputs.items()])
            plan = self._plans.get(key)
        except (AttributeError, TypeError):  # not arrays: lists, numbers
            return self._placed(self._as_arrays(inputs), wanted, None)
        if plan is None:
            return self._placed(inputs, wanted, key)
        for (_, _, _, slot), value in zip(plan.forms, inputs.values(), strict=True):
            if not plan.arrays:
                slot[:] = value.data
            elif slot is not value:
                slot[...] = value
        self._last = plan if plan.arrays else None
        return plan.body, plan.arrays

    def room(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """Arrays in the area, to be filled in place and given to `prepare` as they are. Raises Refused and MoreRoom."""
        from mooring_client import arrays

        check_names(self.welcome.inputs, shapes)
        empty = {}
        for name, shape in shapes.items():
            spec = self._inputs[name][1]
            if spec.datatype == "BYTES":
                raise Refused(400, f"input {name}: expected a tensor of numbers, text has no fixed size")
            check(spec, spec.datatype, tuple(shape), math.prod(shape) * ITEM_SIZE[spec.datatype])
            empty[name] = arrays.view(bytes(math.prod(shape) * ITEM_SIZE[spec.datatype]), spec.datatype, tuple(shape))
        self.prepare(empty, ())
        key = ((), *[(name, value.shape, value.dtype) for name, value in empty.items()])
        return {name: slot for name, _, _, slot in self._plans[key].forms}

    def answer(self, message: bytes, arrays: bool) -> Prediction:
        """The outputs that a DONE speaks of. Raises Refused, MoreRoom, ClientError."""
        if message[0] != _DONE or len(message) < 2:
            raise wire.not_done(message)
        end = 2 + message[1]
        id_, layout = message[2:end].decode(), message[end:]
        if not arrays or layout != self._shown_by or self._shown is None:
            return self._answered(id_, layout, arrays)
        prediction = Prediction(id_, self.welcome.version)
        for name, view in self._shown:
            prediction[name] = view.copy() if self._copy else view
        return prediction

    def _answered(self, id_: str, layout: bytes, arrays: bool) -> Prediction:
        """One that is not laid out like the last."""
        found = self._layouts.get((layout, arrays)) or self._read(layout, arrays)
        prediction = Prediction(id_, self.welcome.version)
        for spec, placed, view in found:
            if view is None:
                prediction[spec.name] = self._taken(spec, placed, arrays)
            else:
                prediction[spec.name] = view.copy() if self._copy else view
        if arrays and all(view is not None for _, _, view in found):
            self._shown, self._shown_by = [(spec.name, view) for spec, _, view in found], layout
        return prediction

    def _taken(self, spec: Spec, placed: Placed, arrays: bool) -> Tensor | Array:
        data = bytes(self._memory[placed.offset : placed.offset + placed.size])
        if not arrays:
            return Tensor(spec.datatype, placed.shape, data)
        from mooring_client.arrays import texts

        return texts(data, placed.shape)

    def _read(self, layout: bytes, arrays: bool) -> list[tuple[Spec, Placed, Any]]:
        found: list[tuple[Spec, Placed, Any]] = []
        for placed in wire.read_layout(layout):
            if placed.tensor >= len(self.welcome.outputs) or placed.offset + placed.size > self.size:
                raise ClientError(f"the worker's answer speaks of output {placed.tensor} at {placed.offset}")
            spec = self.welcome.outputs[placed.tensor]
            view = None
            if arrays and spec.datatype != "BYTES":
                from mooring_client.arrays import view as show

                view = show(self._memory, spec.datatype, placed.shape, placed.offset)
            found.append((spec, placed, view))
        _keep(self._layouts, (layout, arrays), found)
        return found

    def _as_arrays(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        from mooring_client.arrays import as_array

        check_names(self.welcome.inputs, inputs)
        return {
            name: value if isinstance(value, Tensor) else as_array(self._inputs[name][1], value)
            for name, value in inputs.items()
        }

    def _placed(self, inputs: Mapping[str, Any], wanted: Sequence[str], key: object) -> tuple[bytes, bool]:
        """Lays out shapes that were not seen before, or of which no two are alike (text)."""
        check_names(self.welcome.inputs, inputs)
        arrays = not all(isinstance(value, Tensor) for value in inputs.values())
        tensors = self._as_tensors(inputs)
        placed, at = [], 0
        for name, tensor in tensors.items():
            size = memoryview(tensor.data).nbytes
            check(self._inputs[name][1], tensor.datatype, tensor.shape, size)
            placed.append(Placed(self._inputs[name][0], tensor.shape, at, size))
            at = aligned(at + size)
        if at > self.size:
            raise MoreRoom(at + _outputs_size(self.welcome, _rows(self.welcome, placed)))
        body = wire.body(at, placed, self._numbers(wanted))
        for tensor, place in zip(tensors.values(), placed, strict=True):
            self._memory[place.offset : place.offset + place.size] = memoryview(tensor.data).cast("B")
        if key is not None and not any(tensor.datatype == "BYTES" for tensor in tensors.values()):
            pairs = zip(tensors.values(), placed, strict=True)
            forms = tuple(
                (name, inputs[name].shape, inputs[name].dtype, self._slot(tensor, place, arrays))
                for name, (tensor, place) in zip(tensors, pairs, strict=True)
            )
            _keep(self._plans, key, _Plan(wanted, forms, body, arrays))
        return body, arrays

    def _slot(self, tensor: Tensor, place: Placed, arrays: bool) -> memoryview | Array:
        if not arrays:
            return self._memory[place.offset : place.offset + place.size]
        from mooring_client.arrays import view

        return view(self._memory, tensor.datatype, tensor.shape, place.offset)

    def _as_tensors(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        if all(isinstance(value, Tensor) for value in inputs.values()):
            return dict(inputs)
        from mooring_client.arrays import as_tensor

        return {n: v if isinstance(v, Tensor) else as_tensor(v) for n, v in self._as_arrays(inputs).items()}

    def _numbers(self, wanted: Sequence[str]) -> list[int]:
        try:
            return [self._outputs[name] for name in wanted]
        except KeyError as error:
            expected = ", ".join(self._outputs)
            raise Refused(400, f"outputs: expected some of {expected}, got {error.args[0]!r}") from None


def _keep(kept: dict[Any, Any], key: object, value: object) -> None:
    if len(kept) >= MAX_KEPT:
        kept.clear()
    kept[key] = value


def _first_size(welcome: Welcome) -> int:
    inputs = sum(aligned(_bytes(spec, 1)) for spec in welcome.inputs) * _GUESSED_ROWS
    return min(welcome.area_bytes, inputs + _outputs_size(welcome, _GUESSED_ROWS))


def _outputs_size(welcome: Welcome, rows: int) -> int:
    """What the outputs of so many rows take, as far as one can know before: free sizes are taken as the rows'."""
    return sum(aligned(_bytes(spec, rows)) for spec in welcome.outputs)


def _bytes(spec: Spec, free: int) -> int:
    return math.prod(size if size > 0 else free for size in spec.shape) * ITEM_SIZE.get(spec.datatype, 64)


def _rows(welcome: Welcome, placed: Sequence[Placed]) -> int:
    return max((p.shape[0] for p in placed if welcome.inputs[p.tensor].shape[:1] == (-1,)), default=1)


def _power(size: int) -> int:
    """The next power of two of pages: a growing batch should not make a new area each time."""
    pages = max(1, -(-size // PAGE))
    return PAGE << (pages - 1).bit_length()
