"""What the agent and the process that forks its workers say to each other: datagrams of MessagePack, files beside them.

`agent.sandbox.nursery` speaks orders, `agent.sandbox.zygote` answers. Fork is answered by Born or NotBorn, in order.
Ended comes at any time; the process stays a zombie until Reap, so that nobody else can get its number meanwhile.
"""

from __future__ import annotations

import msgspec

MAX_BYTES = 16 * 1024
MAX_FILES = 64  # listening sockets and channels of one worker


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Files that come with it: `numbers` says which number each gets, then, with `enter`, a pidfd of a process in the
    namespaces to enter. The first is the worker's channel, the second takes what it prints.
    """

    numbers: tuple[int, ...]
    enter: bool = False


class Reap(msgspec.Struct, frozen=True, tag="reap"):
    """Nobody asks for `pid` any more."""

    pid: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The libraries are imported. `refused` says why it will not fork all the same: it ends then."""

    refused: str = ""


class Born(msgspec.Struct, frozen=True, tag="born"):
    """A worker that waits for its orders, in a session and process group of its own. Its pidfd comes with it."""

    pid: int


class NotBorn(msgspec.Struct, frozen=True, tag="not-born"):
    why: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """`code` as `subprocess` has it: negative for a signal."""

    pid: int
    code: int


Order = Fork | Reap
Answer = Ready | Born | NotBorn | Ended

encode = msgspec.msgpack.encode
orders: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
