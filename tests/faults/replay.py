"""A folder as a power cut could leave it, from the folder before and the journal of what was done to it.

As in ALICE (Pillai and others, "All File Systems Are Not Created Equal", OSDI 2014): what was not synced is lost, kept
or torn, as each file system may do it. A file's data is durable after fsync or fdatasync of the file, a name after
fsync of its folder. What the agent may rely on is what holds in every `Loss`.
"""

from __future__ import annotations

import enum
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from faults.shim import Kind, Operation

SECTOR = 512


class Loss(enum.StrEnum):
    """What is lost: all that was not synced; data, but no name; names, but no data; the half of each last write, the
    rest zeros, names kept; or some sectors of each write and the names after some moment, by chance.
    """

    STRICT = "strict"
    DATA = "data"
    NAMES = "names"
    TORN = "torn"
    SOME = "some"


@dataclass(frozen=True)
class Change:
    """Of a file's content: bytes at an offset, or (`data` None) a size."""

    at: int
    data: bytes | None

    def on(self, content: bytearray) -> None:
        if self.data is None:
            _resize(content, self.at)
        else:
            _write(content, self.at, self.data)


@dataclass
class File:
    """`synced` is what a cut cannot take."""

    synced: bytes = b""
    changes: list[Change] = field(default_factory=list)
    mode: int = 0o600

    def now(self) -> bytes:
        content = bytearray(self.synced)
        for change in self.changes:
            change.on(content)
        return bytes(content)

    def sync(self) -> None:
        self.synced, self.changes = self.now(), []


@dataclass
class Link:
    """A symbolic link."""

    target: str


@dataclass
class Folder:
    """`synced` are the names that a cut cannot take; `changes` what was done to them since, each with its number."""

    names: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)
    changes: list[tuple[int, str, Node | None]] = field(default_factory=list)
    mode: int = 0o755

    def set(self, number: int, name: str, node: Node | None) -> None:
        _put(self.names, name, node)
        self.changes.append((number, name, node))

    def sync(self) -> None:
        self.synced, self.changes = dict(self.names), []


Node = File | Folder | Link


class Disk:
    """What stands on the disk and what only seems to. `Disk(root)` reads a folder; all in it counts as durable."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._files: dict[int, File] = {}
        self._tree = self._read(self._root)
        self.number = 0

    def apply(self, operations: Iterable[Operation]) -> None:
        """Raises ValueError for what does not fit to what was before: then the journal has a gap."""
        for operation in operations:
            self.number = operation.number
            if operation.result >= 0:
                self._apply(operation)

    def write(self, target: Path, loss: Loss | None, seed: int = 0) -> None:
        """Makes `target` the folder after a cut with this loss; without one, as a process sees it."""
        chance = random.Random(seed)
        until = chance.randint(0, self.number) if loss is Loss.SOME else 0
        _Writer(loss, chance, until).folder(self._tree, target)

    def _read(self, folder: Path) -> Folder:
        made = Folder(mode=folder.stat().st_mode & 0o7777)
        for path in folder.iterdir():
            status = path.lstat()
            if path.is_symlink():
                made.names[path.name] = Link(os.readlink(path))
            elif path.is_dir():
                made.names[path.name] = self._read(path)
            elif path.is_file():
                if status.st_ino not in self._files:
                    self._files[status.st_ino] = File(path.read_bytes(), mode=status.st_mode & 0o7777)
                made.names[path.name] = self._files[status.st_ino]
        made.sync()
        return made

    def _apply(self, one: Operation) -> None:
        match one.kind:
            case Kind.CREATE:
                made = self._files[one.inode] = File(mode=one.mode)
                self._set(one, one.path, made)
            case Kind.WRITE | Kind.TRUNCATE | Kind.ALLOCATE:
                self._change(one)
            case Kind.SYNC:
                node = self._meant(one)
                if isinstance(node, File | Folder):
                    node.sync()
            case Kind.MODE:
                node = self._meant(one)
                if isinstance(node, File | Folder):
                    node.mode = one.mode
            case Kind.TIMES:
                pass
            case _:
                self._rename(one)

    def _rename(self, one: Operation) -> None:
        match one.kind:
            case Kind.RENAME:
                node = self._find(one.path)
                if node is None:
                    raise ValueError(f"operation {one.number}: renames {one.path}, which is not there")
                self._set(one, one.path, None)
                self._set(one, one.other, node)
            case Kind.LINK:
                self._set(one, one.other, self._find(one.path))
            case Kind.MKDIR:
                self._set(one, one.path, Folder(mode=one.mode))
            case Kind.SYMLINK:
                self._set(one, one.path, Link(os.fsdecode(one.data)))
            case _:  # unlink, rmdir
                self._set(one, one.path, None)

    def _change(self, one: Operation) -> None:
        file = self._files.get(one.inode)
        if file is None:
            raise ValueError(f"operation {one.number}: writes to {one.path}, which nobody has made")
        if one.kind is Kind.WRITE:
            file.changes.append(Change(one.at, one.data))
        elif one.kind is Kind.TRUNCATE or one.at > len(file.now()):
            file.changes.append(Change(one.at, None))

    def _meant(self, one: Operation) -> Node | None:
        """By its path where that is a folder: a folder may have got the number of a file that is no more."""
        found = self._find(one.path)
        return found if isinstance(found, Folder) else self._files.get(one.inode) or found

    def _find(self, path: str) -> Node | None:
        node: Node | None = self._tree
        for part in Path(path).relative_to(self._root).parts:
            node = node.names.get(part) if isinstance(node, Folder) else None
        return node

    def _set(self, one: Operation, path: str, node: Node | None) -> None:
        folder = self._find(str(Path(path).parent))
        if not isinstance(folder, Folder):
            raise ValueError(f"operation {one.number}: {path} is in no folder")
        folder.set(one.number, Path(path).name, node)


class _Writer:
    """Puts a tree on the disk as one `Loss` leaves it. `until`: with SOME, names of later operations are lost."""

    def __init__(self, loss: Loss | None, chance: random.Random, until: int) -> None:
        self._loss, self._chance, self._until = loss, chance, until
        self._placed: dict[int, Path] = {}

    def folder(self, folder: Folder, target: Path) -> None:
        target.mkdir(parents=True)
        for name, node in self._names(folder).items():
            path = target / name
            if isinstance(node, Folder):
                self.folder(node, path)
            elif isinstance(node, Link):
                path.symlink_to(node.target)
            elif id(node) in self._placed:
                os.link(self._placed[id(node)], path)
            else:
                path.write_bytes(self._content(node))
                path.chmod(node.mode)
                self._placed[id(node)] = path
        target.chmod(folder.mode)

    def _names(self, folder: Folder) -> dict[str, Node]:
        if self._loss in (Loss.STRICT, Loss.DATA):
            return folder.synced
        if self._loss is not Loss.SOME:
            return folder.names
        names = dict(folder.synced)
        for number, name, node in folder.changes:
            if number <= self._until:
                _put(names, name, node)
        return names

    def _content(self, file: File) -> bytes:
        if self._loss in (None, Loss.DATA):
            return file.now()
        if self._loss in (Loss.STRICT, Loss.NAMES) or not file.changes:
            return file.synced
        content = bytearray(file.synced)
        for change in file.changes if self._loss is Loss.SOME else file.changes[:-1]:
            self._perhaps(change, content)
        if self._loss is Loss.TORN:
            _tear(file.changes[-1], content)
        return bytes(content)

    def _perhaps(self, change: Change, content: bytearray) -> None:
        """The whole change, or with SOME those of its sectors that chance keeps, in a file that may have grown."""
        if self._loss is not Loss.SOME:
            change.on(content)
        elif change.data is None:
            if self._chance.random() < 0.5:
                change.on(content)
        else:
            for start, stop in _sectors(change):
                if self._chance.random() < 0.5:
                    _write(content, start, change.data[start - change.at : stop - change.at])


def _sectors(change: Change) -> list[tuple[int, int]]:
    end = change.at + len(change.data or b"")
    edges = [change.at, *range((change.at // SECTOR + 1) * SECTOR, end, SECTOR), end]
    return list(pairwise(edges))


def _tear(change: Change, content: bytearray) -> None:
    """The first half of the sectors is there; the file has its new size, filled with zeros."""
    if change.data is None:
        return
    sectors = _sectors(change)
    kept = sectors[len(sectors) // 2][0] - change.at
    _write(content, change.at, change.data[:kept])
    _resize(content, max(len(content), change.at + len(change.data)))


def _write(content: bytearray, at: int, data: bytes) -> None:
    _resize(content, max(len(content), at + len(data)))
    content[at : at + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def _put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node
