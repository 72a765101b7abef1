"""Builds faults.c, says how to start a process under it, and reads the journal that it writes.

Called by the tests of the layer itself and by `faults.device`.
"""

from __future__ import annotations

import enum
import os
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")
_HEAD = struct.Struct("<IIHHIQqqIII")
_MAGIC = 0x544C4146


class Kind(enum.IntEnum):
    """As in faults.c."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    RENAME = 5
    LINK = 6
    UNLINK = 7
    RMDIR = 8
    MKDIR = 9
    SYMLINK = 10
    MODE = 11
    TIMES = 12
    ALLOCATE = 13


class Mode(enum.StrEnum):
    """What happens at the chosen operation; the last four until the fault is lifted."""

    COUNT = "count"
    KILL_BEFORE = "kill-before"
    KILL_AFTER = "kill-after"
    FULL = "full"
    READ_ONLY = "read-only"
    BROKEN = "broken"
    SHORT = "short"


@dataclass(frozen=True)
class Operation:
    """One line of the journal. `at` is an offset, or the size that a file is cut or filled to. `result` below zero is
    the error with which it was refused: then nothing has happened.
    """

    number: int
    kind: Kind
    created: bool
    mode: int
    inode: int
    at: int
    result: int
    path: str
    other: str
    data: bytes


@dataclass(frozen=True)
class Fault:
    """At operation `number` (from 1): `mode`. Once, or from then on while the file `lifted_by` stands."""

    mode: Mode = Mode.COUNT
    number: int = 0
    once: bool = False
    while_there: Path | None = None


def build(folder: Path) -> Path:
    """The shared library, compiled. Raises CalledProcessError with the compiler's words."""
    library = folder / "faults.so"
    command = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True, timeout=60)
    return library


def environment(library: Path, root: Path, journal: Path, fault: Fault) -> dict[str, str]:
    """What a process needs in its environment so that what it does below `root` is journalled, and the fault met."""
    told = {
        "LD_PRELOAD": str(library),
        "FAULTS_ROOT": str(root.resolve()),
        "FAULTS_LOG": str(journal),
        "FAULTS_MODE": fault.mode.value,
        "FAULTS_AT": str(fault.number),
        "FAULTS_ONCE": "1" if fault.once else "",
        "FAULTS_WHILE": str(fault.while_there or ""),
    }
    return {**os.environ, **told}


def operations(journal: Path) -> Iterator[Operation]:
    """In the order of the disk. A last line that a kill has cut off is left out."""
    data = journal.read_bytes() if journal.exists() else b""
    at = 0
    while at + _HEAD.size <= len(data):
        magic, number, kind, created, mode, inode, offset, result, *sizes = _HEAD.unpack_from(data, at)
        if magic != _MAGIC:
            raise ValueError(f"{journal}: no record at byte {at}")
        ends = [at + _HEAD.size]
        for size in sizes:
            ends.append(ends[-1] + size)
        if ends[-1] > len(data):
            return
        path, other, payload = (data[start:stop] for start, stop in pairwise(ends))
        names = os.fsdecode(path), os.fsdecode(other)
        yield Operation(number, Kind(kind), bool(created), mode, inode, offset, result, *names, payload)
        at = ends[-1]
