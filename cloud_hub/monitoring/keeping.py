"""Windows and samples as rows, written for many devices at once in the transaction of `committing`.

A window that was counted before, under whatever epoch and number, is left out: its device gave it an id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.monitoring.intake import CountedWindow, KeptSample
from cloud_hub.monitoring.looks import look_start
from cloud_hub.monitoring.merging import Stack
from cloud_hub.monitoring.tallies import LookKey, Tally, merge
from cloud_hub.store.bulk import in_slices, insert_many
from cloud_hub.store.tables import samples, windows

KEY_BYTES: Final = 16


@dataclass(frozen=True)
class FromDevice:
    """A window and whose it is; `scopes` are those that it counts for."""

    device: str
    scopes: tuple[str, ...]
    counted: CountedWindow

    @property
    def key(self) -> bytes | None:
        """None for agents of before 0.2, which give no ids."""
        window = self.counted.window
        if not window.id:
            return None
        text = f"{self.device}\0{window.manifest_sha256}\0{window.id}"
        return blake2b(text.encode(), digest_size=KEY_BYTES).digest()


async def keep_windows(
    connection: AsyncConnection, items: Sequence[FromDevice], look_s: float, now: float
) -> list[FromDevice]:
    """Count what is new of these; what that was."""
    new = await _without_known(connection, items)
    if new:
        await insert_many(connection, windows, [_window_row(item, key, now) for key, item in new])
        counted = [item for _, item in new]
        names = {item.counted.window.manifest_sha256: item.counted.window.module for item in counted}
        await merge(connection, names, _tallies(counted, look_s, now))
    return [item for _, item in new]


async def keep_samples(connection: AsyncConnection, items: Iterable[tuple[str, KeptSample]], now: float) -> None:
    """Each with the device that sent it."""
    await insert_many(connection, samples, [_sample_row(device, item, now) for device, item in items])


async def _without_known(
    connection: AsyncConnection, items: Sequence[FromDevice]
) -> list[tuple[bytes | None, FromDevice]]:
    keyed = [(item.key, item) for item in items]
    seen: set[bytes] = set()
    for some in in_slices([key for key, _ in keyed if key is not None]):
        seen.update((await connection.execute(select(windows.c.key).where(windows.c.key.in_(some)))).scalars())
    new = []
    for key, item in keyed:
        if key is None or key not in seen:
            new.append((key, item))
        if key is not None:
            seen.add(key)
    return new


def _tallies(items: Sequence[FromDevice], look_s: float, now: float) -> Mapping[LookKey, Tally]:
    """What each look grows by.

    A window that ended ahead of this hub's time counts as of now: a look that has not begun would stand for the
    newest, and hide those of everybody else.
    """
    places: dict[LookKey, dict[int, tuple[Stack, list[int]]]] = {}
    for item in items:
        counted = item.counted
        start = look_start(min(counted.window.end, now), look_s)
        for scope in item.scopes:
            stacks = places.setdefault(LookKey(counted.window.manifest_sha256, scope, start), {})
            stacks.setdefault(id(counted.stack), (counted.stack, []))[1].append(counted.row)
    return {key: _total(list(stacks.values())) for key, stacks in places.items()}


def _total(stacks: Sequence[tuple[Stack, list[int]]]) -> Tally:
    first, *others = (stack.total(rows) if len(rows) > 1 else stack.one(rows[0]) for stack, rows in stacks)
    for other in others:
        first = first + other
    return first


def _window_row(item: FromDevice, key: bytes | None, now: float) -> dict[str, object]:
    window = item.counted.window
    return {
        "device": item.device,
        "module": window.module,
        "manifest_sha256": window.manifest_sha256,
        "start": window.start,
        "end": window.end,
        "received_at": now,
        "rows": window.rows,
        "body": item.counted.body,
        "key": key,
    }


def _sample_row(device: str, item: KeptSample, now: float) -> dict[str, object]:
    sample = item.sample
    return {
        "device": device,
        "module": sample.module,
        "manifest_sha256": sample.manifest_sha256,
        "prediction_id": sample.prediction_id,
        "at": sample.at,
        "received_at": now,
        "stratum": sample.stratum,
        "probability": sample.probability,
        "body": item.body,
        "request": sample.request or None,
    }
