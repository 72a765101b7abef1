"""The Open Inference Protocol v2's infer request, with the extensions for binary tensors and shared memory.

Pure but for regions: bytes in, arrays out. No sockets, no backend. Everything a caller may get wrong raises Refused
with what was expected and what came. Called by `agent.endpoint.resources`; answers are made by `rendering`.
Source: kserve.github.io, V2 protocol and its binary data extension; Triton's shared memory extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from agent.backends import Array
from agent.endpoint.codec import DTYPES, FLOATS, from_bytes, from_json
from agent.endpoint.exchange import Refused
from agent.endpoint.regions import Regions, Span
from modules.errors import MALFORMED, TensorError
from modules.manifest import Manifest
from modules.tensors import TensorSpec, served

MAX_ID = 256
MAX_TENSORS = 1024
MAX_PLAN_BYTES = 2048  # of the JSON of a request whose meaning is kept
MAX_PLANS = 64
MAX_TIMEOUT_US = 86_400_000_000
MAX_TIME_S = 1e15
_NO_DATA = msgspec.Raw(b"")
Parameters = dict[str, Any] | None  # callers may send any parameter; those we know are checked where they are read


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: msgspec.Raw = _NO_DATA
    parameters: Parameters = None


class _Output(msgspec.Struct):
    name: str
    parameters: Parameters = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: Parameters = None


class Wanted(msgspec.Struct, frozen=True):
    """An output, and how it goes back: in a region, as bytes, or in JSON."""

    spec: TensorSpec
    binary: bool
    span: Span | None = None


class Part(msgspec.Struct, frozen=True):
    """Where an input lies in the body."""

    spec: TensorSpec
    shape: tuple[int, ...]
    start: int
    stop: int


class Plan(msgspec.Struct, frozen=True):
    """What the JSON of a binary request means, whatever bytes follow it; `size` is that of the whole body."""

    outputs: tuple[Wanted, ...]
    parts: tuple[Part, ...]
    size: int
    rows: int
    even: bool
    tails: tuple[tuple[int, ...], ...]
    timeout_us: int


class Call:
    """A request understood. `rows` is its batch size, `even` whether every input has as many; `tails` are the other
    sizes, where the manifest leaves them free. `plan` with `body` stands for arrays that were not made yet. `event_s`:
    when it happened what the inputs are of, in seconds since the epoch (0: not said).
    """

    __slots__ = (
        "_arrays",
        "_parser",
        "body",
        "even",
        "event_s",
        "id",
        "outputs",
        "plan",
        "rows",
        "tails",
        "timeout_us",
    )

    def __init__(
        self,
        parser: Parser,
        id_: str,
        outputs: tuple[Wanted, ...],
        arrays: dict[str, Array] | None,
        plan: Plan | None = None,
        body: bytes = b"",
    ) -> None:
        self._parser = parser
        self._arrays = arrays
        self.id = id_
        self.event_s = 0.0
        self.outputs = outputs
        self.plan = plan
        self.body = body
        if plan is not None:
            self.rows, self.even, self.tails, self.timeout_us = plan.rows, plan.even, plan.tails, plan.timeout_us
        else:
            self.rows, self.even, self.tails = parser.measure({n: a.shape for n, a in (arrays or {}).items()})
            self.timeout_us = 0

    @property
    def inputs(self) -> dict[str, Array]:
        """Arrays by name, which nobody writes to. Raises Refused for a NaN where there never was one."""
        if self._arrays is None:
            assert self.plan is not None  # noqa: S101 - one of the two is there
            self._arrays = self._parser.arrays(self.plan, self.body)
        return self._arrays


class Parser:
    """Turns bodies into calls of one module.

    `not_missing` names the float inputs that never were NaN in training: a NaN there is refused.
    """

    def __init__(self, manifest: Manifest, not_missing: frozenset[str], regions: Regions | None = None) -> None:
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        outputs = served(manifest.outputs)
        self._outputs = {spec.name: spec for spec in outputs}
        self._all = {binary: tuple(Wanted(spec, binary) for spec in outputs) for binary in (False, True)}
        self._not_missing = not_missing
        self._batched = [spec.name for spec in manifest.inputs if spec.shape and spec.shape[0] == -1]
        self._ragged = [spec.name for spec in manifest.inputs if -1 in spec.shape[1:]]
        self._decoder = msgspec.json.Decoder(_Request)
        self._plans: dict[bytes, Plan] = {}
        self.regions = regions or Regions(allowed=False)

    def parse(self, body: bytes, json_length: int | None) -> Call:
        """`json_length` is the header Inference-Header-Content-Length. Raises Refused."""
        if json_length is None:
            head, at = body, len(body)
        else:
            if not 0 < json_length <= len(body):
                raise Refused(400, f"expected {json_length} bytes of JSON in the body, got {len(body)} bytes in all")
            head, at = body[:json_length], json_length
            plan = self._plans.get(head)
            if plan is not None and plan.size == len(body):
                return Call(self, "", plan.outputs, None, plan, body)
        request = self._decoded(head)
        arrays, parts = self._arrays(request.inputs, body, at)
        call = Call(self, request.id, self._wanted(request), arrays)
        call.timeout_us = _timeout(request.parameters)
        call.event_s = _event_time(request.parameters)
        if not call.id and not call.event_s and len(head) <= MAX_PLAN_BYTES and len(parts) == len(arrays):
            self._keep(head, call, parts, len(body))
        return call

    def measure(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, bool, tuple[tuple[int, ...], ...]]:
        """Rows, whether all have as many, and the other free sizes."""
        if not self._batched:
            return 1, False, ()
        rows = shapes[self._batched[0]][0]
        even = len(self._batched) == 1 or all(shapes[name][0] == rows for name in self._batched)
        return rows, even, tuple(shapes[name][1:] for name in self._ragged)

    def arrays(self, plan: Plan, body: bytes) -> dict[str, Array]:
        """Raises Refused."""
        return {part.spec.name: self._array(part, part.shape, body[part.start : part.stop]) for part in plan.parts}

    def join(self, calls: Sequence[Call]) -> dict[str, Array]:
        """The inputs of calls with the same tails, one below the other. Raises Refused."""
        if len(calls) == 1:
            return calls[0].inputs
        plan = calls[0].plan
        if plan is None or any(call.plan is not plan for call in calls):
            arrays = [call.inputs for call in calls]
            return {name: np.concatenate([one[name] for one in arrays]) for name in self._inputs}
        joined = {}
        for part in plan.parts:
            start, stop = part.start, part.stop
            data = b"".join([call.body[start:stop] for call in calls])
            joined[part.spec.name] = self._array(part, (plan.rows * len(calls), *part.shape[1:]), data)
        return joined

    def _array(self, part: Part, shape: tuple[int, ...], data: bytes) -> Array:
        """Of bytes whose size was seen to fit. Raises Refused."""
        name, datatype = part.spec.name, part.spec.datatype
        array: Array = np.frombuffer(data, DTYPES[datatype]).reshape(shape)
        if datatype == "BOOL":
            array = array.view(np.uint8) != 0
        if name in self._not_missing:
            refuse_nan(name, array)
        return array

    def _keep(self, head: bytes, call: Call, parts: list[Part], size: int) -> None:
        if any(wanted.span is not None for wanted in call.outputs):
            return
        if len(self._plans) >= MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        outputs = next((known for known in self._all.values() if known == call.outputs), call.outputs)
        self._plans[head] = Plan(outputs, tuple(parts), size, call.rows, call.even, call.tails, call.timeout_us)

    def _decoded(self, head: bytes) -> _Request:
        try:
            request = self._decoder.decode(head)
        except MALFORMED as error:
            raise Refused(400, f"expected an infer request in JSON: {error}") from None
        if len(request.id) > MAX_ID:
            raise Refused(400, f"id: expected at most {MAX_ID} characters, got {len(request.id)}")
        return request

    def _arrays(self, tensors: list[_Input], body: bytes, at: int) -> tuple[dict[str, Array], list[Part]]:
        """The arrays, and where those lie that came as plain bytes."""
        arrays: dict[str, Array] = {}
        parts: list[Part] = []
        for tensor in tensors:
            spec = self._spec(tensor)
            if spec.name in arrays:
                raise Refused(400, f"input {spec.name}: expected once, got it twice")
            size, span = self._source(tensor)
            try:
                if span is not None:
                    data = self.regions.read(span)
                    arrays[spec.name] = from_bytes(spec.name, spec.datatype, tensor.shape, data)
                elif size is None:
                    arrays[spec.name] = from_json(spec.name, spec.datatype, tensor.shape, bytes(tensor.data))
                else:
                    arrays[spec.name] = from_bytes(spec.name, spec.datatype, tensor.shape, _blob(spec, body, at, size))
                    parts += [Part(spec, tensor.shape, at, at + size)] if spec.datatype != "BYTES" else []
                    at += size
            except TensorError as error:
                raise Refused(400, f"input {error}") from None
            if spec.name in self._not_missing:
                refuse_nan(spec.name, arrays[spec.name])
        if at != len(body):
            raise Refused(400, f"expected {at} bytes of body by its sizes, got {len(body)}")
        if len(arrays) != len(self._inputs):
            raise Refused(400, f"inputs: expected {', '.join(self._inputs)}, got {', '.join(arrays) or 'none'}")
        return arrays, parts

    def _spec(self, tensor: _Input) -> TensorSpec:
        spec = self._inputs.get(tensor.name)
        if spec is None:
            raise Refused(400, f"inputs: expected {', '.join(self._inputs)}, got {tensor.name[:80]!r}")
        if tensor.datatype != spec.datatype:
            raise Refused(400, f"input {spec.name}: expected {spec.datatype}, got {tensor.datatype[:80]!r}")
        if not _fits(spec.shape, tensor.shape):
            raise Refused(400, f"input {spec.name}: expected shape {list(spec.shape)}, got {list(tensor.shape)[:16]}")
        return spec

    def _source(self, tensor: _Input) -> tuple[int | None, Span | None]:
        """How many bytes of the body, or which part of a region; neither for JSON."""
        where = f"input {tensor.name}"
        span = self.regions.span(where, tensor.parameters)
        size = tensor.parameters.get("binary_data_size") if tensor.parameters else None
        told = [size is not None, tensor.data != _NO_DATA, span is not None]
        if sum(told) > 1:
            raise Refused(400, f"{where}: expected data, binary_data_size or a region, got both")
        if not any(told):
            raise Refused(400, f"{where}: expected data or parameters.binary_data_size, got neither")
        if size is not None and (type(size) is not int or size < 0):
            raise Refused(400, f"{where}: expected binary_data_size as a number, got {str(size)[:80]!r}")
        return size, span

    def _wanted(self, request: _Request) -> tuple[Wanted, ...]:
        binary = bool(request.parameters and request.parameters.get("binary_data_output", False))
        if not request.outputs:
            return self._all[binary]
        if len(request.outputs) > MAX_TENSORS:
            raise Refused(400, f"outputs: expected at most {MAX_TENSORS}, got {len(request.outputs)}")
        return tuple(self._output(output, binary) for output in request.outputs)

    def _output(self, output: _Output, binary: bool) -> Wanted:
        spec = self._outputs.get(output.name)
        if spec is None:
            raise Refused(400, f"outputs: expected {', '.join(self._outputs)}, got {output.name[:80]!r}")
        said = output.parameters or {}
        if said.get("classification"):
            raise Refused(
                400, f"output {spec.name}: expected to give the tensor, got classification, an extension we lack"
            )
        own = said.get("binary_data")
        span = self.regions.span(f"output {spec.name}", output.parameters)
        return Wanted(spec, binary if own is None else bool(own), span)


def _blob(spec: TensorSpec, body: bytes, at: int, size: int) -> bytes:
    if at + size > len(body):
        raise Refused(400, f"input {spec.name}: expected {size} bytes of binary data, got {len(body) - at}")
    return body[at : at + size]


def _timeout(parameters: Parameters) -> int:
    """Triton's parameter: microseconds until the client waits no longer; 0 is none."""
    timeout = parameters.get("timeout", 0) if parameters else 0
    return timeout if type(timeout) is int and 0 < timeout <= MAX_TIMEOUT_US else 0


def _event_time(parameters: Parameters) -> float:
    """Ours: seconds since the epoch; 0 is none. Whether it can be is for those to see who count. Raises Refused."""
    said = parameters.get("event_time", 0) if parameters else 0
    if type(said) not in (int, float):
        raise Refused(400, f"event_time: expected seconds since the epoch, got {str(said)[:80]!r}")
    return float(said) if abs(said) < MAX_TIME_S else MAX_TIME_S


def _fits(spec: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return len(spec) == len(shape) and all(
        have > 0 and want in (-1, have) for want, have in zip(spec, shape, strict=True)
    )


def refuse_nan(name: str, array: Array) -> None:
    """For an input that was never missing in training. Raises Refused."""
    flat = array.reshape(-1)
    # A sum of squares is NaN exactly when an element is (infinities of one sign do not cancel), and takes a quarter
    # of the time of asking each. Half precision would overflow on the way.
    total = flat.dot(flat) if flat.itemsize > 2 else np.nan
    if total != total and np.isnan(flat).any():
        rows = np.flatnonzero(np.isnan(flat))
        raise Refused(
            400,
            f"input {name}: expected numbers (the training data has no missing values), "
            f"got NaN in {len(rows)} of {flat.size} elements, the first at {rows[0]}",
        )


def never_missing(manifest: Manifest, tensors_without_missing: frozenset[str]) -> frozenset[str]:
    """The float inputs among `tensors_without_missing`."""
    return frozenset(s.name for s in manifest.inputs if s.datatype in FLOATS and s.name in tensors_without_missing)
