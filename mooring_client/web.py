"""One connection over HTTP, for plain applications where shared memory is not possible. Made by `client`."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from mooring_client import words
from mooring_client.errors import ClientError, Gone, Refused, Timeout
from mooring_client.places import Place
from mooring_client.prediction import Prediction
from mooring_client.tensors import ITEM_SIZE, check, check_names
from mooring_client.words import MAX_HEAD, Head


class WebLink:
    """Raises in every method: Gone when the other side ended, Timeout, Refused, ClientError."""

    transport = "http"
    size = 0

    def __init__(self, place: Place, timeout_s: float, token: str) -> None:
        self._place = place
        self._token = token
        self._sock = _connect(place, timeout_s)
        self._answers: BinaryIO = self._sock.makefile("rb")
        try:
            self.welcome = words.read_metadata(*self._round(words.metadata_request(place, token), timeout_s))
        except BaseException:
            self.close()
            raise

    def ask(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], id_: bytes, timeout_s: float, event_time: float
    ) -> Prediction:
        tensors, arrays = words.as_tensors(self.welcome, inputs)
        request = words.infer_request(
            self._place, self._token, self.welcome, tensors, outputs, id_.decode(), event_time
        )
        return words.read_prediction(*self._round(request, timeout_s), arrays)

    def room(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        return empty(self.welcome.inputs, shapes)

    def close(self) -> None:
        self._answers.close()
        self._sock.close()

    def _round(self, request: bytes, timeout_s: float) -> tuple[Head, bytes]:
        try:
            self._sock.settimeout(timeout_s)
            self._sock.sendall(request)
            head = words.read_head(self._read_head())
            body = self._answers.read(head.length)
        except TimeoutError:
            raise Timeout(f"expected an answer within {timeout_s:g} s, got none") from None
        except OSError as error:
            raise Gone(f"the connection ended ({error.strerror or error})") from error
        if len(body) != head.length:
            raise Gone("the connection ended in the middle of an answer")
        if head.last:
            self._sock.shutdown(socket.SHUT_RDWR)  # the next request finds it ended, and another is made
        return head, body

    def _read_head(self) -> bytes:
        lines, size = [], 0
        while (line := self._answers.readline(MAX_HEAD)) != b"\r\n":
            size += len(line)
            if not line.endswith(b"\r\n"):
                raise Gone("the connection ended")
            if size > MAX_HEAD:
                raise ClientError(f"expected headers of at most {MAX_HEAD} bytes, got more")
            lines.append(line)
        return b"".join(lines)


def empty(specs: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Arrays of the application's own, to be filled. Raises Refused(400)."""
    from mooring_client import arrays

    check_names(specs, shapes)
    known = {spec.name: spec for spec in specs}
    made = {}
    for name, shape in shapes.items():
        spec = known[name]
        if spec.datatype == "BYTES":
            raise Refused(400, f"input {name}: expected a tensor of numbers, text has no fixed size")
        size = math.prod(shape) * ITEM_SIZE[spec.datatype]
        check(spec, spec.datatype, tuple(shape), size)
        made[name] = arrays.view(bytearray(size), spec.datatype, tuple(shape))
    return made


def _connect(place: Place, timeout_s: float) -> socket.socket:
    try:
        if place.host:
            return socket.create_connection((place.host, place.port), timeout_s)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout_s)
            sock.connect(place.plain)
        except BaseException:
            sock.close()
            raise
        return sock
    except TimeoutError:
        raise Timeout(f"{place}: expected a connection within {timeout_s:g} s") from None
    except OSError as error:
        raise Gone(f"{place}: nobody serves here ({error.strerror or error})") from error
