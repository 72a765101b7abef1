"""The Open Inference Protocol v2's infer request and response, with the binary tensor extension.

Pure: bytes in, arrays out, and back. No sockets, no backend. Everything a caller may get wrong raises Refused with
what was expected and what came. Called by `agent.endpoint.resources`.
Source: kserve.github.io, V2 protocol and its binary data extension.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from agent.backends import Array
from agent.endpoint.codec import FLOATS, from_bytes, from_json, to_bytes, to_json
from agent.endpoint.exchange import Refused
from modules.errors import MALFORMED, TensorError
from modules.manifest import Manifest
from modules.tensors import TensorSpec

MAX_ID = 256
MAX_TENSORS = 1024
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


class Call(msgspec.Struct):
    """A request understood: arrays by input name, and (output name, whether it goes back as bytes)."""

    id: str
    inputs: dict[str, Array]
    outputs: list[tuple[TensorSpec, bool]]


class Parser:
    """Turns bodies into calls of one module.

    `not_missing` names the float inputs that never were NaN in training: a NaN there is refused.
    """

    def __init__(self, manifest: Manifest, not_missing: frozenset[str]) -> None:
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._outputs = {spec.name: spec for spec in manifest.outputs}
        self._all = {binary: [(spec, binary) for spec in manifest.outputs] for binary in (False, True)}
        self._not_missing = not_missing
        self._decoder = msgspec.json.Decoder(_Request)

    def parse(self, body: bytes, json_length: int | None) -> Call:
        """`json_length` is the header Inference-Header-Content-Length. Raises Refused."""
        if json_length is None:
            head, at = body, len(body)
        else:
            if not 0 < json_length <= len(body):
                raise Refused(400, f"expected {json_length} bytes of JSON in the body, got {len(body)} bytes in all")
            head, at = body[:json_length], json_length
        try:
            request = self._decoder.decode(head)
        except MALFORMED as error:
            raise Refused(400, f"expected an infer request in JSON: {error}") from None
        if len(request.id) > MAX_ID:
            raise Refused(400, f"id: expected at most {MAX_ID} characters, got {len(request.id)}")
        inputs = self._arrays(request.inputs, body, at)
        return Call(request.id, inputs, self._wanted(request))

    def _arrays(self, tensors: list[_Input], body: bytes, at: int) -> dict[str, Array]:
        arrays: dict[str, Array] = {}
        for tensor in tensors:
            spec = self._spec(tensor)
            size = _binary_size(tensor)
            if tensor.name in arrays:
                raise Refused(400, f"input {tensor.name}: expected once, got it twice")
            try:
                if size is None:
                    arrays[tensor.name] = from_json(tensor.name, spec.datatype, tensor.shape, bytes(tensor.data))
                else:
                    if at + size > len(body):
                        text = f"input {tensor.name}: expected {size} bytes of binary data, got {len(body) - at}"
                        raise Refused(400, text)
                    arrays[tensor.name] = from_bytes(tensor.name, spec.datatype, tensor.shape, body[at : at + size])
                    at += size
            except TensorError as error:
                raise Refused(400, f"input {error}") from None
            if tensor.name in self._not_missing:
                refuse_nan(tensor.name, arrays[tensor.name])
        if at != len(body):
            raise Refused(400, f"expected {at} bytes of body by its sizes, got {len(body)}")
        if len(arrays) != len(self._inputs):
            raise Refused(400, f"inputs: expected {', '.join(self._inputs)}, got {', '.join(arrays) or 'none'}")
        return arrays

    def _spec(self, tensor: _Input) -> TensorSpec:
        spec = self._inputs.get(tensor.name)
        if spec is None:
            raise Refused(400, f"inputs: expected {', '.join(self._inputs)}, got {tensor.name[:80]!r}")
        if tensor.datatype != spec.datatype:
            raise Refused(400, f"input {spec.name}: expected {spec.datatype}, got {tensor.datatype[:80]!r}")
        if not _fits(spec.shape, tensor.shape):
            raise Refused(400, f"input {spec.name}: expected shape {list(spec.shape)}, got {list(tensor.shape)[:16]}")
        return spec

    def _wanted(self, request: _Request) -> list[tuple[TensorSpec, bool]]:
        binary = bool(request.parameters and request.parameters.get("binary_data_output", False))
        if not request.outputs:
            return self._all[binary]
        if len(request.outputs) > MAX_TENSORS:
            raise Refused(400, f"outputs: expected at most {MAX_TENSORS}, got {len(request.outputs)}")
        wanted = []
        for output in request.outputs:
            spec = self._outputs.get(output.name)
            if spec is None:
                raise Refused(400, f"outputs: expected {', '.join(self._outputs)}, got {output.name[:80]!r}")
            own = output.parameters.get("binary_data") if output.parameters else None
            wanted.append((spec, binary if own is None else bool(own)))
        return wanted


class Renderer:
    """Turns outputs into bodies."""

    def __init__(self, manifest: Manifest) -> None:
        self._head = {"model_name": manifest.name, "model_version": str(manifest.version)}

    def render(
        self, id_: str, wanted: list[tuple[TensorSpec, bool]], outputs: Mapping[str, Array]
    ) -> tuple[bytes, int | None]:
        """The body, and the length of its JSON when bytes follow it."""
        entries: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for spec, binary in wanted:
            array = outputs[spec.name]
            entry: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
            if binary:
                blobs.append(to_bytes(spec.datatype, array))
                entry["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                entry["data"] = to_json(spec.datatype, array)
            entries.append(entry)
        head = msgspec.json.encode({**self._head, "id": id_, "outputs": entries})
        if not blobs:
            return head, None
        return b"".join((head, *blobs)), len(head)


def _binary_size(tensor: _Input) -> int | None:
    size = tensor.parameters.get("binary_data_size") if tensor.parameters else None
    if tensor.parameters and "shared_memory_region" in tensor.parameters:
        raise Refused(400, f"input {tensor.name}: expected data in the request, got a shared memory region")
    if size is None:
        if tensor.data == _NO_DATA:
            raise Refused(400, f"input {tensor.name}: expected data or parameters.binary_data_size, got neither")
        return None
    if type(size) is not int or size < 0:
        raise Refused(400, f"input {tensor.name}: expected binary_data_size as a number, got {str(size)[:80]!r}")
    if tensor.data != _NO_DATA:
        raise Refused(400, f"input {tensor.name}: expected data or binary_data_size, got both")
    return size


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
