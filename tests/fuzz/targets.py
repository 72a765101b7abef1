"""Everything on a device that parses bytes from outside: one target each, with good bytes to begin from.

A target takes any bytes. It returns when they were refused with the error that the parser promises, or understood; any
other exception is a bug. Run by `test_parsers.py` (Hypothesis) and by `device.py` (atheris).
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from agent.endpoint.connection import Connection, Shared
from agent.endpoint.exchange import Limits, Refused, Reply, Request
from agent.endpoint.oip import Parser
from agent.sandbox.protocol import FrameError, Pong, Stats, WindowClosed, frame, read_notice
from firmware_profiles.profile import DeviceProfile
from modules.enrolment import ClaimToken, EnrolmentError
from modules.errors import (
    MALFORMED,
    ManifestError,
    MessageError,
    ModuleError,
    PatchError,
    TargetError,
    TopicError,
    WindowError,
)  # fmt: skip
from modules.manifest import Lineage, Manifest, Runtime, decode_manifest, encode_manifest
from modules.messages import (
    Ack,
    AgentEvent,
    Answer,
    Batch,
    DeviceReport,
    Doorbell,
    Get,
    Refusal,
    Sample,
    SignedReport,
    UpdateReport,
    decode,
    decode_event,
    decode_report,
    decode_sample,
    encode,
    encode_report,
)  # fmt: skip
from modules.patch import apply as apply_patch
from modules.targets import (
    DirectorCustom,
    ImageCustom,
    TargetPath,
    check_device_id,
    director_custom,
    image_custom,
    to_custom,
)  # fmt: skip
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, decode_golden, encode_golden
from modules.topics import Topic
from modules.windows import (
    Categorical,
    Numeric,
    ReferenceProfile,
    Window,
    decode_reference,
    decode_window,
    encode_reference,
    encode_window,
    pack_counts,
    pack_joint,
    unpack_counts,
    unpack_joint,
)  # fmt: skip
from support.golden_patch import BASE, PATCH, SIZE
from support.repository import make_module

X, Y = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("y", "BYTES", (-1,))
MANIFEST = Manifest("digits", 1, "pi", Lineage("digits", 1), (X, Y), (X,), (), Runtime(model=""))
TENSOR = Tensor("x", "FP32", (1, 2), bytes(8))
SHA = "a" * 64


@dataclass(frozen=True)
class Target:
    """`run` raises nothing on any bytes; `corpus` are bytes that it understands."""

    run: Callable[[bytes], None]
    corpus: tuple[bytes, ...]


def refusing(parse: Callable[[bytes], object], *errors: type[Exception]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        try:
            parse(data)
        except errors as error:
            assert str(error)  # noqa: PT017 - a refusal has words

    return run


def text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# What comes over MQTT


def messages() -> tuple[bytes, ...]:
    found = (
        Get("image", "2.root.json", held=bytes(32)), Answer(10, 0, b"0123456789"), Refusal("not-found", "no", b"{}"),
        Doorbell(7), Batch("window", "life", 0, ((1, b"x"), (2, b"y"))), Ack("event", "life", 9),
        SignedReport(b"{}", b"s"),
    )  # fmt: skip
    return tuple(encode(message) for message in found)


def report() -> bytes:
    profile, idle = DeviceProfile("pi", "aarch64"), UpdateReport("idle")
    return encode_report(DeviceReport("cam-17", 1, 1.0, "0.1.0", profile, 1, 1, (), idle, idle, (), {"sample": 3}))


# What comes as a signed file, before or after its signature was checked


def customs(data: bytes) -> None:
    try:
        value = msgspec.json.decode(data)
    except MALFORMED:
        return
    refusing(lambda _: image_custom(value), TargetError)(data)
    refusing(lambda _: director_custom(value), TargetError)(data)


# What comes over HTTP, from programs on the device or beside it


def infer(data: bytes) -> None:
    """The first two bytes say how long the JSON part is claimed to be; 0 is no claim."""
    claimed = int.from_bytes(data[:2], "big")
    parser = Parser(MANIFEST, frozenset({"x"}))
    refusing(lambda body: parser.parse(body, claimed or None), Refused)(data[2:])


class Ears(asyncio.Transport):
    """The client's side: keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said = bytearray()
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        return None

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None

    def is_reading(self) -> bool:
        return True


class Echo:
    """Answers every request with its size."""

    def handle(self, request: Request) -> Reply | Awaitable[Reply]:
        return Reply(200, b"%d" % len(request.body))

    def refused(self, error: Refused) -> Reply:
        return Reply(error.status, json.dumps(str(error)).encode())


def http(data: bytes) -> None:
    """Whatever is answered begins as HTTP does. The first byte says in what pieces it comes."""

    async def hear() -> None:
        connection, ears = Connection(Shared(Echo(), Limits(body_bytes=4096))), Ears()
        connection.connection_made(ears)
        step = 1 + (data[0] if data else 0)
        for at in range(1, len(data), step):
            connection.received(data[at : at + step])
        connection.eof_received()
        await asyncio.sleep(0)
        connection.connection_lost(None)
        await asyncio.sleep(0)
        assert not ears.said or ears.said.startswith(b"HTTP/1.1 ")

    asyncio.run(hear())


# What comes from a module's own process


def notices(data: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        while True:
            await read_notice(reader)

    refusing(lambda _: asyncio.run(read()), FrameError, asyncio.IncompleteReadError)(data)


def _infer_corpus() -> tuple[bytes, ...]:
    plain = json.dumps(
        {"id": "1", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2]},
                               {"name": "y", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
         "outputs": [{"name": "x", "parameters": {"binary_data": True}}]}
    ).encode()  # fmt: skip
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
                    {"name": "y", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]}
    ).encode()  # fmt: skip
    blobs = bytes(8) + (1).to_bytes(4, "little") + b"a"
    return b"\0\0" + plain, len(head).to_bytes(2, "big") + head + blobs


def _http_corpus() -> tuple[bytes, ...]:
    post = b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"
    asked = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nInference-Header-Content-Length: 2\r\n\r\n"
    return tuple(bytes([size]) + data for size in (0, 7, 255) for data in (post, chunked, post + chunked, asked))


NUMERIC = Numeric("f", "x", (0.0, 1.0, 2.0), (1, 2, 3, 4, 0), 0.5, 1.0)
REFERENCE = ReferenceProfile(10, (NUMERIC,), (Categorical("c", "y", ("a", "b"), (1, 2, 3, 4)),))
COUNTS = pack_counts((1, 2, 300, 4, 0))
WINDOW = Window("digits", SHA, SHA, 1.0, 2.0, 10, 0, 0, COUNTS, bytes(8), pack_counts([0] * 32))
SAMPLE = Sample("digits", SHA, "p", 1.0, "base", 0.5, (TENSOR,), (TENSOR,))
CUSTOMS = tuple(
    json.dumps(to_custom(custom)).encode()
    for custom in (ImageCustom(("pi",), 3), DirectorCustom("pi", 3, "rollout-1", config={"a": 1.5}))
)
PATH = b"modules/dev/digits/1/pi.json"


def patch(data: bytes) -> None:
    """The decoder writes nothing behind the size that was signed."""
    made = io.BytesIO()
    apply_patch(io.BytesIO(BASE), io.BytesIO(data), made.write, SIZE)
    assert made.tell() == SIZE


TARGETS: dict[str, Target] = {
    "topic": Target(
        refusing(lambda data: Topic.parse(text(data)), TopicError),
        (b"mooring/1/cam-17/up/window", b"mooring/1/cam-17/down/data"),
    ),
    "message": Target(refusing(decode, MessageError), messages()),
    "report": Target(refusing(decode_report, MessageError), (report(),)),
    "sample": Target(refusing(decode_sample, MessageError), (encode(SAMPLE),)),
    "event": Target(refusing(decode_event, MessageError), (encode(AgentEvent(1.0, "info", "k", "t")),)),
    "window": Target(refusing(decode_window, WindowError), (encode_window(WINDOW),)),
    "counts": Target(refusing(lambda data: unpack_counts(data, 5), WindowError), (COUNTS,)),
    "joint": Target(refusing(lambda data: unpack_joint(data, 3), WindowError), (pack_joint(9, (1.5, -2.0, 0.0)),)),
    "reference": Target(refusing(decode_reference, WindowError), (encode_reference(REFERENCE),)),
    "manifest": Target(
        refusing(decode_manifest, ManifestError), (encode_manifest(MANIFEST), encode_manifest(make_module()[0]))
    ),
    "golden": Target(
        refusing(decode_golden, ModuleError), (encode_golden(GoldenSet((GoldenCase((TENSOR,), (TENSOR,)),))),)
    ),
    "target path": Target(refusing(lambda data: TargetPath.parse(text(data)), TargetError), (PATH,)),
    "target fields": Target(customs, CUSTOMS),
    "device id": Target(refusing(lambda data: check_device_id(text(data)), TargetError), (b"cam-17",)),
    "claim token": Target(
        refusing(lambda data: ClaimToken.parse(text(data)), EnrolmentError),
        (f"mct1.{'A' * 43}.{SHA}".encode(),),
    ),
    "infer request": Target(infer, _infer_corpus()),
    "http": Target(http, _http_corpus()),
    "patch": Target(refusing(patch, PatchError), (PATCH,)),
    "worker notice": Target(notices, (frame(Pong(Stats())) + frame(WindowClosed(encode_window(WINDOW))),)),
}
