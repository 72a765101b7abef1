"""What a serving worker and a candidate say to each other, over their own connection. Worker side.

A frame is a 4-byte big-endian length and MessagePack; arrays are bytes as `agent.endpoint.codec` lays them out, of
tensors that both know from their manifests. Nobody believes the other: who breaks the form is left.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable, Mapping

import msgspec

from agent.backends import Array
from agent.endpoint.codec import from_bytes, to_bytes
from modules.errors import MALFORMED, TensorError
from modules.tensors import TensorSpec

MAX_FRAME_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")


class Part(msgspec.Struct, array_like=True, gc=False):
    """One tensor of a prediction."""

    name: str
    shape: tuple[int, ...]
    data: bytes


class Fed(msgspec.Struct, array_like=True):
    """A prediction to make. `number` is 0 where nobody waits for the answer; else `left_us` says for how long.

    `outputs` are what the serving version answered, to be compared; none where that is not known, or is large.
    """

    number: int
    id: str
    inputs: list[Part]
    outputs: list[Part]
    event_s: float = 0.0
    left_us: int = 0


class Answered(msgspec.Struct, array_like=True):
    """The answer to the `Fed` of this number; `why` says what kept it from being made."""

    number: int
    outputs: list[Part]
    why: str = ""


feds = msgspec.msgpack.Decoder(Fed)
answers = msgspec.msgpack.Decoder(Answered)
_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """The other side sent what is no frame of these."""


def framed(message: Fed | Answered) -> bytes:
    """Raises FrameError where it is too large."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"expected at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    return _LENGTH.pack(len(body)) + body


def parts(specs: Iterable[TensorSpec], arrays: Mapping[str, Array]) -> list[Part]:
    """Those of `specs` that are there."""
    return [
        Part(spec.name, arrays[spec.name].shape, to_bytes(spec.datatype, arrays[spec.name]))
        for spec in specs
        if spec.name in arrays
    ]


def arrays(specs: Iterable[TensorSpec], said: Iterable[Part]) -> dict[str, Array]:
    """Of the tensors that `specs` name. Raises TensorError for one that does not fit."""
    by_name = {spec.name: spec for spec in specs}
    found: dict[str, Array] = {}
    for part in said:
        spec = by_name.get(part.name)
        if spec is None:
            continue
        fits = len(spec.shape) == len(part.shape) and all(
            got > 0 and want in (-1, got) for want, got in zip(spec.shape, part.shape, strict=True)
        )
        if not fits:
            raise TensorError(f"{spec.name}: expected shape {list(spec.shape)}, got {list(part.shape)[:16]}")
        found[spec.name] = from_bytes(spec.name, spec.datatype, part.shape, part.data)
    return found


class Frames(asyncio.Protocol):
    """Cuts what arrives into frames. `took` gets each body, and may raise FrameError; `lost` hears of the end."""

    def __init__(self, took: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self._took = took
        self._lost = lost
        self._held = bytearray()

    @property
    def unsent(self) -> int:
        """Bytes that wait beside what the kernel holds."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def send(self, frames: bytes) -> None:
        if self.transport is not None:
            self.transport.write(frames)

    def close(self) -> None:
        """What was written still goes."""
        if self.transport is not None:
            self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - stream sockets have no other
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._lost()

    def data_received(self, data: bytes) -> None:
        self._held += data
        at = 0
        try:
            while len(self._held) - at >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._held, at)
                if length > MAX_FRAME_BYTES:
                    raise FrameError(f"expected at most {MAX_FRAME_BYTES} bytes, got {length}")
                end = at + _LENGTH.size + length
                if len(self._held) < end:
                    break
                with memoryview(self._held) as held:
                    body = bytes(held[at + _LENGTH.size : end])
                self._took(body)
                at = end
        except (FrameError, *MALFORMED):
            if self.transport is not None:
                self.transport.abort()
            self._held.clear()
            return
        del self._held[:at]
