"""What a script returned, as the arrays that the manifest promises or as the bytes of an answer. Called by `script`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np

from agent.backends import Array
from agent.endpoint.codec import DTYPES
from modules.entry import EntryError
from modules.tensors import TensorSpec

MAX_STATUS, MIN_STATUS = 599, 200
_WITHOUT_BODY = (204, 205, 304)
JSON = "application/json"
_OURS = frozenset({"content-type", "content-length", "connection", "transfer-encoding"})


@runtime_checkable
class Response(Protocol):
    """What an answer with a status of its own looks like: ours (`azure_http`), or Flask's where that is installed."""

    status_code: object
    headers: Mapping[str, str]

    def get_data(self) -> bytes | str: ...


class ScoreAnswer(msgspec.Struct, frozen=True):
    """What `/score` answers: `headers` beside the content type, which is `kind`."""

    status: int
    body: bytes
    kind: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def score_answer(result: object) -> ScoreAnswer:
    """JSON of whatever it is, or a response as the script made it. Raises EntryError."""
    if isinstance(result, Response):
        return _response(result)
    try:
        return ScoreAnswer(200, json.dumps(result, allow_nan=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        text = "NaN and infinity are none" if "float values" in str(error) else f"{type(error).__name__}: {error}"
        raise EntryError(f"entry script: expected a value that JSON can say, got {text}"[:500]) from error


def answered_value(result: object) -> object:
    """What is in a response that the script made, for its arrays; anything else is itself."""
    return result.get_data() if isinstance(result, Response) else result


def lists(array: Array) -> list[Any]:
    """Nested lists; bytes become text."""
    if array.dtype == object:
        texts = [item.decode(errors="replace") for item in array.ravel()]
        array = np.array(texts, object).reshape(array.shape)
    nested: list[Any] = array.tolist()
    return nested


def as_array(spec: TensorSpec, value: object) -> Array:
    """The value in the spec's datatype and shape, owned by us. Raises ValueError or TypeError."""
    array = _bytes(value) if spec.datatype == "BYTES" else np.array(value, dtype=DTYPES[spec.datatype], order="C")
    fits = len(array.shape) == len(spec.shape)
    if not fits or any(want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)):
        raise ValueError(f"output {spec.name}: expected shape {list(spec.shape)}, got {list(array.shape)}")
    return array


def _bytes(value: object) -> Array:
    nested = np.array(value, dtype=object)
    flat = np.empty(nested.size, dtype=object)
    flat[:] = [item if isinstance(item, bytes) else str(item).encode() for item in nested.ravel()]
    array: Array = flat.reshape(nested.shape)
    return array


def _response(result: Response) -> ScoreAnswer:
    body, status = result.get_data(), result.status_code
    known = isinstance(status, int) and MIN_STATUS <= status <= MAX_STATUS and status not in _WITHOUT_BODY
    if not isinstance(body, bytes) or not isinstance(status, int) or not known:
        raise EntryError(f"entry script: expected bytes and a status from 200 to 599 with a body, got {status}"[:500])
    pairs = [(str(name), str(value)) for name, value in result.headers.items()]
    for name, value in pairs:
        if not name.isascii() or any(mark in name + value for mark in "\r\n\0"):
            raise EntryError(f"entry script: expected headers without line ends, got {name[:80]!r}")
    kinds = [value for name, value in pairs if name.lower() == "content-type"]
    kept = tuple((name, value) for name, value in pairs if name.lower() not in _OURS)
    return ScoreAnswer(status, body, kinds[-1] if kinds else JSON, kept)
