"""HTTP/1.1 and the Open Inference Protocol v2 as bytes, without a socket: for where shared memory is not possible.

Inputs and outputs travel as binary tensors. Used by `web` and `aio`.
Source: kserve.github.io, V2 protocol and its binary data extension.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mooring_client.errors import ClientError, Gone, Refused
from mooring_client.places import Place
from mooring_client.prediction import Prediction
from mooring_client.tensors import Spec, Tensor, check, check_names, read_specs
from mooring_client.wire import Welcome

MAX_HEAD = 64 * 1024
MAX_BODY = 1024 * 1024 * 1024
_JSON_LENGTH = "inference-header-content-length"


class Head(NamedTuple):
    """Of an answer. `last`: the connection ends with it."""

    status: int
    length: int
    json_length: int
    last: bool


def metadata_request(place: Place, token: str) -> bytes:
    return _request("GET", f"/v2/models/{place.model}", place, token)


def infer_request(
    place: Place,
    token: str,
    known: Welcome,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    id_: str,
    event_time: float = 0.0,
) -> bytes:
    """Raises Refused(400)."""
    specs = {spec.name: spec for spec in known.inputs}
    check_names(known.inputs, inputs)
    names = [spec.name for spec in known.outputs]
    if unknown := [name for name in outputs if name not in names]:
        raise Refused(400, f"outputs: expected some of {', '.join(names)}, got {unknown[0]!r}")
    entries, blobs = [], []
    for name, tensor in inputs.items():
        data = bytes(tensor.data)
        check(specs[name], tensor.datatype, tensor.shape, len(data))
        entries.append(
            {"name": name, "datatype": tensor.datatype, "shape": list(tensor.shape),
             "parameters": {"binary_data_size": len(data)}}
        )  # fmt: skip
        blobs.append(data)
    asked: dict[str, Any] = {"id": id_, "inputs": entries, "parameters": {"binary_data_output": True}}
    if event_time:
        asked["parameters"]["event_time"] = event_time
    if outputs:
        asked["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    text = json.dumps(asked).encode()
    return _request("POST", f"/v2/models/{place.model}/infer", place, token, b"".join([text, *blobs]), len(text))


def read_head(data: bytes) -> Head:
    """Raises ClientError."""
    try:
        first, *lines = data.decode("ascii").strip().split("\r\n")
        fields = dict(line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in fields.items()}
        head = Head(
            int(first.split()[1]), int(headers["content-length"]), int(headers.get(_JSON_LENGTH, -1)),
            headers.get("connection", "").lower() == "close",
        )  # fmt: skip
    except (ValueError, KeyError, IndexError) as error:
        raise ClientError(f"expected an answer in HTTP, got {data[:80]!r}") from error
    if not 0 <= head.length <= MAX_BODY:
        raise ClientError(f"expected an answer of at most {MAX_BODY} bytes, got {head.length}")
    return head


def read_metadata(head: Head, body: bytes) -> Welcome:
    """Raises Gone, Refused, ClientError."""
    if head.status == 404:
        raise Gone(f"this module is not served here: {_error(body)}")
    said = _checked(head, body, len(body))
    try:
        return Welcome(
            str(said["name"]), str(said["versions"][0]), 0, frozenset(), read_specs(said["inputs"]),
            read_specs(said["outputs"]),
        )  # fmt: skip
    except (KeyError, IndexError, TypeError) as error:
        raise ClientError(f"the metadata cannot be read: {error!r}") from error


def read_prediction(head: Head, body: bytes, arrays: bool) -> Prediction:
    """Raises Refused, ClientError."""
    at = len(body) if head.json_length < 0 else head.json_length
    said = _checked(head, body, at)
    try:
        prediction = Prediction(str(said.get("id", "")), str(said["model_version"]))
        for output in said["outputs"]:
            size = int(output["parameters"]["binary_data_size"])
            spec = Spec(str(output["name"]), str(output["datatype"]), tuple(map(int, output["shape"])))
            prediction[spec.name] = _value(spec, body[at : at + size], arrays)
            at += size
    except (KeyError, TypeError, ValueError) as error:
        raise ClientError(f"the answer cannot be read: {error!r}") from error
    return prediction


def as_tensors(known: Welcome, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """And whether the outputs are to be arrays. Raises Refused(400)."""
    if inputs and all(isinstance(value, Tensor) for value in inputs.values()):
        return dict(inputs), False
    from mooring_client.arrays import as_array, as_tensor

    check_names(known.inputs, inputs)
    specs = {spec.name: spec for spec in known.inputs}
    return {n: v if isinstance(v, Tensor) else as_tensor(as_array(specs[n], v)) for n, v in inputs.items()}, True


def _value(spec: Spec, data: bytes, arrays: bool) -> object:
    if not arrays:
        return Tensor(spec.datatype, spec.shape, data)
    from mooring_client.arrays import texts, view

    return texts(data, spec.shape) if spec.datatype == "BYTES" else view(bytearray(data), spec.datatype, spec.shape)


def _checked(head: Head, body: bytes, end: int) -> dict[str, Any]:
    if head.status != 200:
        raise Refused(head.status, _error(body))
    try:
        said: dict[str, Any] = json.loads(body[:end])
    except ValueError as error:
        raise ClientError(f"expected JSON, got {body[:80]!r}") from error
    return said


def _error(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def _request(method: str, path: str, place: Place, token: str, body: bytes = b"", json_length: int = -1) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {place.host or 'device'}", f"Content-Length: {len(body)}"]
    if json_length >= 0:
        lines += ["Content-Type: application/octet-stream", f"Inference-Header-Content-Length: {json_length}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
