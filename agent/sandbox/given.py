"""What the device gives one worker beside its module's files: a part of the order to start. No heavy imports.

Made by `agent.runtimes`, from settings, profile and probe; read by the session.
"""

from __future__ import annotations

import msgspec

from agent.fpga.circuit import Circuit
from modules.runtime import CPU


class Given(msgspec.Struct, frozen=True, omit_defaults=True):
    """`providers`: the device profile's order. `cpus`: those the worker is pinned to (empty: all).

    `oom_score`: how much sooner than others it goes when memory runs out, from 0 to 1000. `gpu_memory_mib`: its
    part of an accelerator's memory (0: no cap). `cache`: a folder of its own for what runtimes compile, in files of
    at most `cache_bytes` (empty: none). `fast`: the descriptor on which clients of the shared-memory path are
    accepted (-1: none). `dial`: the descriptor through which connections for sources come (-1: none). `places`: the
    paths that its sources may read. `token`: what a client must show on the TCP port (empty: nothing). `peers`: the
    user ids that may use the Unix sockets (empty: all). `shares_memory`: whether clients may pass tensors in POSIX
    shared memory. `black_box`: a
    page where it writes what it is about to run (-1: none). `circuit`: the devices of its FPGA, or why there are none.
    `ring`: the file for its last predictions (-1: none). `quota_left`: the bytes of samples that it may send at once
    (None: it begins anew). `secret`: this device's own, with which redaction hashes. `tap`: the descriptor on which it
    hears of the other version of its module (-1: none); `candidate`: whether it is the one beside, which takes nothing
    but what the serving one gives it.
    """

    providers: tuple[str, ...] = (CPU,)
    cpus: tuple[int, ...] = ()
    oom_score: int = 0
    gpu_memory_mib: int = 0
    cache: str = ""
    cache_bytes: int = 0
    fast: int = -1
    dial: int = -1
    places: tuple[str, ...] = ()
    token: str = ""
    peers: tuple[int, ...] = ()
    shares_memory: bool = False
    black_box: int = -1
    circuit: Circuit = Circuit()
    ring: int = -1
    quota_left: float | None = None
    secret: bytes = b""
    tap: int = -1
    candidate: bool = False
