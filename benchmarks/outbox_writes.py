"""How much the outbox writes to the device's flash, at the default rates, beside one commit for every item.

One simulated hour of a device with three modules, hurried by SPEED: windows of the default length, samples of the
default rate at a request a second each, a few events. The hub acknowledges after a moment. Counted are the bytes that
the process hands to the file system (`wchar` of /proc/self/io, which any file system has) and those that reach its
page cache for the disk (`write_bytes`, of which some file systems keep no count). Side by side: the outbox, one commit
per item and one per ack as an application would do it with SQLite's defaults, and the outbox's own rows so.

    .venv/bin/python -m benchmarks.outbox_writes
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.config import OutboxLimits
from agent.link import LinkStatus
from agent.outbox import Outbox
from agent.store import AgentStore
from benchmarks.common import median, report
from modules.messages import Ack, Batch, Stream, decode

SPEED = 240.0  # one simulated hour in 15 s
HOUR_S = 3600.0
DAY_S = 86_400.0
MODULES = 3
WINDOW_S, WINDOW_BYTES = 300.0, 900
SAMPLE_EVERY_S, SAMPLE_BYTES = 100.0, 400  # a request a second at the default rate of 0.01
EVENT_EVERY_S, EVENT_BYTES = 900.0, 160
ACK_S = 0.2
ROUNDS = 3


@dataclass(frozen=True)
class Item:
    at: float  # seconds of the simulated hour
    stream: Stream
    payload: bytes


class Written:
    """Bytes since it was made."""

    def __init__(self) -> None:
        self._began = _io()

    def since(self) -> tuple[int, int]:
        now = _io()
        return now["wchar"] - self._began["wchar"], now["write_bytes"] - self._began["write_bytes"]


class Hub:
    """As the outbox sees a link: always connected, and a hub behind it that acknowledges."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.connected.set()
        self.session = 1
        self._acks: list[Callable[[Ack], None]] = []

    def on_ack(self, callback: Callable[[Ack], None]) -> None:
        self._acks.append(callback)

    def on_change(self, callback: Callable[[LinkStatus], None]) -> None:
        """It never changes."""

    async def publish(self, topic: str, payload: bytes) -> bool:
        batch = decode(payload)
        assert isinstance(batch, Batch)
        ack = Ack(batch.stream, batch.epoch, batch.entries[-1][0])
        asyncio.get_running_loop().call_later(ACK_S / SPEED, self._acknowledge, ack)
        return True

    def _acknowledge(self, ack: Ack) -> None:
        for tell in self._acks:
            tell(ack)


def items() -> list[Item]:
    """One hour. When in its turn each comes is by chance, the same in every run."""
    chance = random.Random(1)
    every: list[tuple[Stream, float, int]] = [
        ("window", WINDOW_S, WINDOW_BYTES),
        ("sample", SAMPLE_EVERY_S, SAMPLE_BYTES),
        ("event", EVENT_EVERY_S, EVENT_BYTES),
    ]
    found = [
        Item((step + chance.random()) * pause, stream, bytes([(step + module) % 251]) * size)
        for stream, pause, size in every
        for module in range(MODULES if stream != "event" else 1)
        for step in range(int(HOUR_S / pause))
    ]
    return sorted(found, key=lambda item: item.at)


async def outbox(folder: Path, load: list[Item]) -> tuple[int, int]:
    """The agent's own, with its default intervals hurried like everything else."""
    base = OutboxLimits()
    limits = msgspec.structs.replace(
        base,
        commit_every_s=base.commit_every_s / SPEED,
        lazy_commit_s=base.lazy_commit_s / SPEED,
        forget_s=base.forget_s / SPEED,
        tidy_every_s=base.tidy_every_s / SPEED,
    )
    async with AgentStore(folder / "outbox.sqlite3") as store:
        box = Outbox(store, Hub(), "cam-17", limits)  # type: ignore[arg-type]
        await box.open()
        task = asyncio.create_task(box.run())
        written, began = Written(), asyncio.get_running_loop().time()
        for item in load:
            await asyncio.sleep(max(0.0, began + item.at / SPEED - asyncio.get_running_loop().time()))
            box.offer(item.stream, item.payload)
        await asyncio.sleep(2 * base.forget_s / SPEED)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await box.flush()
    return written.since()


def one_by_one(path: Path, load: list[Item], pragmas: tuple[str, ...]) -> tuple[int, int]:
    """A commit when an item comes, another when it has been acknowledged."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in pragmas:
            connection.execute(pragma)
        connection.execute(
            "create table outbox(stream text, seq integer, payload blob, size integer, at real, "
            "primary key(stream, seq))"
        )
        written = Written()
        for number, item in enumerate(load):
            row = (item.stream, number, item.payload, len(item.payload), item.at)
            connection.execute("insert into outbox values(?, ?, ?, ?, ?)", row)
            connection.execute("delete from outbox where stream = ? and seq <= ?", (item.stream, number))
    return written.since()


def rounds() -> Iterator[dict[str, float]]:
    load = items()
    payload = sum(len(item.payload) for item in load)
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".outbox-") as name:
            folder = Path(name)
            ours, ours_disk = asyncio.run(outbox(folder, load))
            naive, naive_disk = one_by_one(folder / "naive.sqlite3", load, ())
            wal, _ = one_by_one(
                folder / "wal.sqlite3", load, ("pragma journal_mode = wal", "pragma synchronous = full")
            )
        day = DAY_S / HOUR_S / 2**20
        yield {
            "mib_per_day": ours * day,
            "payload_mib_per_day": payload * day,
            "disk_mib_per_day": ours_disk * day,
            "writes_over_payload": ours / payload,
            "naive_mib_per_day": naive * day,
            "naive_disk_mib_per_day": naive_disk * day,
            "naive_wal_mib_per_day": wal * day,
            "naive_over_outbox": naive / ours,
            "naive_wal_over_outbox": wal / ours,
        }


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}


def main() -> None:
    found = list(rounds())
    report("outbox_writes", {name: median(one[name] for one in found) for name in found[0]})


if __name__ == "__main__":
    main()
