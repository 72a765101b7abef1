"""Doorbells of many: signed ahead, slice by slice, behind the call; a slice that fails leaves the others."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from cloud_hub.errors import Unavailable
from cloud_hub.ringing import FEW, SLICE, Ringing
from support.waiting import until


class Bells:
    """What was made ready and rung, in order."""

    def __init__(self) -> None:
        self.ready: list[str] = []
        self.rung: dict[str, int] = {}
        self.slices: list[int] = []
        self.gate = asyncio.Event()
        self.failures = 0

    async def make_ready(self, devices: Collection[str]) -> None:
        self.ready += devices

    async def ring(self, versions: Mapping[str, int]) -> None:
        await self.gate.wait()
        assert set(versions) <= set(self.ready), "rung before it was signed"
        if self.failures:
            self.failures -= 1
            raise Unavailable("store-busy", "the database is away")
        self.slices.append(len(versions))
        self.rung |= versions


@asynccontextmanager
async def running(bells: Bells) -> AsyncIterator[Ringing]:
    ringing = Ringing(bells.make_ready, bells.ring)
    task = asyncio.create_task(ringing.run())
    try:
        yield ringing
    finally:
        task.cancel()
        await asyncio.wait([task])


def many(count: int, version: int = 1) -> dict[str, int]:
    return {f"sim-{number:05d}": version for number in range(count)}


async def test_a_few_are_rung_when_the_call_returns() -> None:
    bells = Bells()
    bells.gate.set()
    async with running(bells) as ringing:
        await ringing.ring_all(many(FEW))
        assert bells.rung == many(FEW)


async def test_many_are_rung_behind_the_call_in_slices() -> None:
    bells = Bells()
    async with running(bells) as ringing:
        async with asyncio.timeout(10):
            await ringing.ring_all(many(3 * SLICE + 1))
        assert bells.rung == {}
        bells.gate.set()
        await until(lambda: len(bells.rung) == 3 * SLICE + 1, "all to be rung")
    assert bells.slices == [SLICE, SLICE, SLICE, 1]


async def test_a_device_that_waits_is_rung_once_with_its_newest_version() -> None:
    bells = Bells()
    async with running(bells) as ringing:
        await ringing.ring_all(many(2 * SLICE, version=1))
        await ringing.ring_all(many(2 * SLICE, version=2))
        bells.gate.set()
        await until(lambda: set(bells.rung.values()) == {2}, "the newest versions to be rung")
    assert sum(bells.slices) <= 3 * SLICE


async def test_a_slice_that_fails_is_left_to_the_round_for_those_behind() -> None:
    bells = Bells()
    bells.failures = 1
    bells.gate.set()
    async with running(bells) as ringing:
        await ringing.ring_all(many(2 * SLICE))
        await until(lambda: len(bells.rung) == SLICE, "the second slice to be rung")
        await ringing.ring_all(many(FEW))
        assert set(many(FEW)) <= set(bells.rung)
