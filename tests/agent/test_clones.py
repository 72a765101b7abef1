"""Two agents with one certificate on a real broker: each notices that another takes its place."""

from __future__ import annotations

import asyncio

from agent.clones import KEY, SUSPECT_AT, WITHIN_S, CloneWatch
from agent.link import Link
from support.links import QUICK, running
from support.mosquitto import Mosquitto
from support.waiting import until


async def test_two_links_with_one_certificate_suspect_a_clone(broker: Mosquitto) -> None:
    tls = broker.tls(broker.client("cam-17"), "cam-17")
    told: list[tuple[str, str]] = []

    async def suspect(key: str, text: str) -> None:
        told.append((key, text))

    watch = CloneWatch(suspect)
    mine, other = (Link("cam-17", "localhost", broker.port, lambda: tls, QUICK) for _ in range(2))
    mine.on_takeover(watch.taken_over)
    task = asyncio.create_task(watch.run())
    try:
        async with running(mine), running(other, wait=False):
            await until(lambda: bool(told), "the suspicion")
    finally:
        task.cancel()
    assert told[0][0] == KEY
    assert f"ended {SUSPECT_AT} fresh connections" in told[0][1]


async def test_a_connection_that_overtakes_another_now_and_then_is_no_clone() -> None:
    told: list[str] = []
    now = [0.0]

    async def suspect(key: str, text: str) -> None:
        told.append(text)

    watch = CloneWatch(suspect, lambda: now[0])
    task = asyncio.create_task(watch.run())
    try:
        for _ in range(2 * SUSPECT_AT):
            now[0] += WITHIN_S
            watch.taken_over()
            await asyncio.sleep(0)
    finally:
        task.cancel()
    assert told == []


async def test_a_broker_that_is_killed_is_no_clone(broker: Mosquitto) -> None:
    taken: list[None] = []
    link = Link("cam-17", "localhost", broker.port, lambda: broker.tls(broker.client("cam-17"), "cam-17"), QUICK)
    link.on_takeover(lambda: taken.append(None))
    async with running(link):
        await broker.kill()
        await until(lambda: not link.connected.is_set(), "the loss")
        await broker.start()
        await until(link.connected.is_set, "the connection")
        link.reconnect()
        await until(lambda: link.session == 3, "a connection that we wanted anew")
    assert len(taken) < SUSPECT_AT - 1
