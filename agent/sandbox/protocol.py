"""What the agent's parent and a worker process say to each other, over a socket pair that the worker inherits.

A frame is a 4-byte big-endian length and one MessagePack message of the tagged unions below; nothing is ever pickled.
Exceptions cross as key and text. The parent speaks `Order`s, the worker speaks `Notice`s. Orders are answered in order:
Start -> Ready | Broken; SelfTest -> Passed | Broken; Serve -> Serving; Drain -> Drained; Ping -> Pong; Asked ->
AskedDone. WindowClosed, SampleTaken and BlobTaken come at any time. Stop and end of file end the worker.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Literal, TypeVar

import msgspec

from agent.sandbox.given import Given
from firmware_profiles.confinement import Confinement
from modules.commands import AskSamples
from modules.errors import MALFORMED
from modules.execution import StageExecution
from modules.manifest import SamplingPolicy

MAX_FRAME_BYTES = 4 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_Message = TypeVar("_Message")


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Confine, load, be ready. `slot` is the folder of verified files, `listen` the inherited listening sockets' fds.

    `uid` is the user to become (0 = stay), `confine` whether to apply rlimits, Landlock and seccomp. `config` is the
    JSON object that the director gives this device's module. `outside` are the parent's namespaces by name, `around`
    what the parent did to confine the worker, `floor` the lowest level at which the parent lets modules run. `given` is
    what of the device it may use.
    """

    slot: str
    manifest: bytes
    sampling: SamplingPolicy
    listen: tuple[int, ...]
    uid: int = 0
    confine: bool = True
    config: bytes = b"{}"
    outside: dict[str, int] = {}
    around: tuple[str, ...] = ()
    floor: Confinement = Confinement.UNKNOWN
    given: Given = Given()


class SelfTest(msgspec.Struct, frozen=True, tag="self-test"):
    """Run the golden inputs and compare."""


class Serve(msgspec.Struct, frozen=True, tag="serve"):
    """Accept connections on the listening sockets."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Accept no more, answer what is under way, close the window, within `deadline_s`."""

    deadline_s: float


class SetPolicy(msgspec.Struct, frozen=True, tag="set-policy"):
    """A new sampling policy, from the next prediction on. Not answered."""

    sampling: SamplingPolicy


class Hold(msgspec.Struct, frozen=True, tag="hold"):
    """From now on answer requests with 503, and take no inputs from sources; both false ends that. Not answered."""

    requests: bool = False
    sources: bool = False


class Asked(msgspec.Struct, frozen=True, tag="asked"):
    """Send these rows of the ring as samples of the command `id`, before the answer."""

    id: str
    asked: AskSamples


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Are you there, and how are you doing?"""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Exit now. Not answered."""


Order = Start | SelfTest | Serve | Drain | SetPolicy | Hold | Asked | Ping | Stop


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Confined and loaded. `confinement` is what was done (words, such as "uid+rlimits+landlock+seccomp") and `level`
    what that amounts to; `execution` what runs where (such as "onnx: 12/12 nodes on CPUExecutionProvider"), and
    `stages` the same as values, one or more per stage.
    """

    confinement: str
    execution: str
    load_ms: float
    level: Confinement = Confinement.UNKNOWN
    stages: tuple[StageExecution, ...] = ()


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """An order failed. Keys: load-failed, format-refused, out-of-memory, golden-mismatch, golden-failed,
    confine-failed, bad-manifest, internal.
    """

    key: str
    text: str


class Passed(msgspec.Struct, frozen=True, tag="passed"):
    """The golden cases agree."""

    cases: int
    worst_error: float


class Serving(msgspec.Struct, frozen=True, tag="serving"):
    """The worker accepts connections."""


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """Nothing is under way any more; `cut` connections were closed at the deadline."""

    cut: int


class SourceSeen(msgspec.Struct, frozen=True, array_like=True):
    """How a source does: its kind, a word or two, and how many items were taken, failed, and dropped unseen."""

    kind: str
    state: str
    taken: int = 0
    failed: int = 0
    dropped: int = 0


class Stats(msgspec.Struct, frozen=True):
    """Counts since the worker started; latency percentiles in microseconds over all predictions so far, and the counts
    that they are of, see `agent.latency`. `thinned` predictions were left out for the quota alone; `sampling` says why
    no samples are taken, where the policy does not fit the module. `beside` counts, by word, what went between the
    version that serves and its candidate, see `agent.candidates`.
    """

    requests: int = 0
    rows: int = 0
    errors: int = 0
    refused: int = 0
    in_flight: int = 0
    sampled: int = 0
    dropped_samples: int = 0
    p50_us: float = 0.0
    p99_us: float = 0.0
    latency: tuple[int, ...] = ()
    thinned: int = 0
    dropped_why: dict[str, int] = {}
    sampling: str = ""
    sources: tuple[SourceSeen, ...] = ()
    beside: dict[str, int] = {}


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    stats: Stats


class WindowClosed(msgspec.Struct, frozen=True, tag="window-closed"):
    """`window` is an encoded modules.windows.Window."""

    window: bytes


class SampleTaken(msgspec.Struct, frozen=True, tag="sample-taken"):
    """`sample` is an encoded modules.messages.Sample."""

    sample: bytes


class BlobTaken(msgspec.Struct, frozen=True, tag="blob-taken"):
    """`piece` is an encoded modules.pieces.BlobPiece, of a sample that went before it."""

    piece: bytes


class AskedDone(msgspec.Struct, frozen=True, tag="asked-done", omit_defaults=True):
    """`count` samples were sent, of `found`; `key` and `text` say why not, or not all."""

    outcome: Literal["done", "refused"]
    key: str = ""
    text: str = ""
    count: int = 0
    found: int = 0


Notice = Ready | Broken | Passed | Serving | Drained | Pong | AskedDone | WindowClosed | SampleTaken | BlobTaken


class FrameError(Exception):
    """The other side sent what is not a frame of this protocol; the channel is of no more use."""


def frame(message: Order | Notice) -> bytes:
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"{type(message).__name__}: expected at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    return _LENGTH.pack(len(body)) + body


async def read_order(reader: asyncio.StreamReader) -> Order:
    """Raises FrameError; asyncio.IncompleteReadError at the end of the stream."""
    return _decode(await _read(reader), _orders)


async def read_notice(reader: asyncio.StreamReader) -> Notice:
    """Raises FrameError; asyncio.IncompleteReadError at the end of the stream."""
    return _decode(await _read(reader), _notices)


async def _read(reader: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"frame: expected at most {MAX_FRAME_BYTES} bytes, got {length}")
    return await reader.readexactly(length)


_orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_notices: msgspec.msgpack.Decoder[Notice] = msgspec.msgpack.Decoder(Notice)


def _decode(body: bytes, decoder: msgspec.msgpack.Decoder[_Message]) -> _Message:
    try:
        return decoder.decode(body)
    except MALFORMED as error:
        raise FrameError(f"frame: {error}") from error
