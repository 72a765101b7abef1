"""What the agent's parent and the child that talks to the engine say to each other, over a socket pair.

A frame is a 4-byte big-endian length and one MessagePack message. Asks carry a number, answers the same; they may come
in any order, because a large image must not keep a container from being ended. Exceptions cross as key and text.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

MAX_FRAME_BYTES = 8 * 1024 * 1024
LENGTH = struct.Struct(">I")
MANAGED = "dev.mooring.agent"  # label: which agent's container or image this is
MODULE = "dev.mooring.module"  # label: of which module


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Have the image of the module in the folder `slot` (its manifest's bytes beside), under the name `tag`."""

    slot: str
    manifest: bytes
    tag: str


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Make a container by the engine's own `options` (Docker's API, containers/create) and start it. Where `log` is
    not empty, what it prints goes to that file.
    """

    name: str
    options: dict[str, Any]
    log: str = ""


class End(msgspec.Struct, frozen=True, tag="end"):
    """Kill what still runs, say how it ended, and remove it."""

    container: str


class Sweep(msgspec.Struct, frozen=True, tag="sweep"):
    """Remove every container of the agent `owner` but those in `keep`, and its images but those with `tags`. What this
    child has started stays, too.
    """

    owner: str
    keep: tuple[str, ...]
    tags: tuple[str, ...]


class Look(msgspec.Struct, frozen=True, tag="look"):
    """What engine is there?"""


Order = Load | Run | End | Sweep | Look


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """`image` is its id, `fresh` whether it had to be loaded."""

    image: str
    fresh: bool


class Running(msgspec.Struct, frozen=True, tag="running"):
    """`pid` of its first process, as this machine numbers it."""

    container: str
    pid: int


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """`last` is the end of what it printed, where the engine kept that."""

    code: int
    out_of_memory: bool
    last: str = ""


class Swept(msgspec.Struct, frozen=True, tag="swept"):
    containers: int
    images: int


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    version: str
    storage: str
    runtimes: tuple[str, ...]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Keys: engine-absent, engine-unreachable, engine-refused, image-refused, image-damaged."""

    key: str
    text: str


Answer = Loaded | Running | Ended | Swept | Seen | Failed


class Ask(msgspec.Struct, frozen=True):
    number: int
    order: Order


class Reply(msgspec.Struct, frozen=True):
    number: int
    answer: Answer


def frame(message: Ask | Reply) -> bytes:
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"expected a frame of at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    return LENGTH.pack(len(body)) + body
