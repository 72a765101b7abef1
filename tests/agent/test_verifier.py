"""Trust on its thread, asked over a real broker: verified, refused, cut off and given up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from agent.config import StatePaths
from agent.errors import TrustError
from agent.link import Link
from agent.trust import Verifier, build_trust
from modules.messages import Answer, Get
from modules.targets import DEVICE_ID_FIELD
from support.hub import FakeHub
from support.links import make_link, running
from support.mosquitto import Mosquitto
from support.repository import HARDWARE, World
from support.waiting import until


@pytest.fixture
async def hub(broker: Mosquitto, world: World) -> AsyncIterator[FakeHub]:
    async with FakeHub(broker) as hub:
        hub.files = world.files
        yield hub


@pytest.fixture
async def link(broker: Mosquitto, hub: FakeHub) -> AsyncIterator[Link]:
    async with running(make_link(broker)) as link:
        yield link


@pytest.fixture
async def verifier(link: Link, state_dir: StatePaths) -> AsyncIterator[Verifier]:
    verifier = Verifier(build_trust(state_dir, "cam-17", HARDWARE, time.time), link, timeout_s=20.0)
    yield verifier
    verifier.close()


def trust_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("trust")]


async def test_the_desired_set_comes_over_the_link(verifier: Verifier, hub: FakeHub) -> None:
    desired = await verifier.refresh({})
    assert [(module.name, module.release_counter) for module in desired.modules] == [("digits", 5)]
    hub.asked.clear()
    assert await verifier.refresh({"digits": 5}) == desired
    assert len(hub.asked) == 4


async def test_several_callers_are_served_in_turn(verifier: Verifier) -> None:
    first, second, third = await asyncio.gather(*(verifier.refresh({}) for _ in range(3)))
    assert first == second == third


async def test_the_loop_goes_on_while_the_thread_waits(verifier: Verifier, hub: FakeHub, link: Link) -> None:
    hub.answer = lambda get: None if get.name == "timestamp.json" else hub.from_files(get)
    refreshing = asyncio.create_task(verifier.refresh({}))
    await until(lambda: any(get.name == "timestamp.json" for get in hub.asked), "the unanswered request")
    digest = next(name for repository, name in hub.files if repository == "blob")
    assert (await link.get("blob", digest)).data == hub.files["blob", digest]
    refreshing.cancel()
    with suppress(asyncio.CancelledError):
        await refreshing


async def test_a_refusal_comes_out_of_the_thread_by_its_key(verifier: Verifier, world: World) -> None:
    world.director.targets.signed.unrecognized_fields[DEVICE_ID_FIELD] = "cam-18"
    world.director.publish()
    with pytest.raises(TrustError, match="expected metadata for cam-17") as caught:
        await verifier.refresh({})
    assert (caught.value.key, caught.value.attack) == ("wrong-device", True)


async def test_metadata_tampered_with_on_the_way_is_refused(verifier: Verifier, hub: FakeHub) -> None:
    def tampered(get: Get) -> Answer:
        data = hub.files.get((get.repository, get.name), b"{}")
        return Answer(len(data), 0, data.replace(b"rollout-1", b"rollout-2"))

    hub.answer = lambda get: tampered(get) if get.name == "targets.json" else hub.from_files(get)
    with pytest.raises(TrustError, match=r"director repository, targets.json") as caught:
        await verifier.refresh({})
    assert caught.value.key == "bad-signature"


async def test_the_broker_killed_during_a_refresh_is_no_attack(
    verifier: Verifier, hub: FakeHub, broker: Mosquitto, link: Link
) -> None:
    hub.answer = lambda get: None if get.name == "timestamp.json" else hub.from_files(get)
    refreshing = asyncio.create_task(verifier.refresh({}))
    await until(lambda: any(get.name == "timestamp.json" for get in hub.asked), "the unanswered request")
    await broker.kill()
    with pytest.raises(TrustError, match="the connection ended") as caught:
        await refreshing
    assert (caught.value.key, caught.value.attack) == ("unreachable", False)
    await broker.start()
    hub.answer = hub.from_files
    await until(lambda: link.session == 2, "the link to come back")
    await hub.ready()
    assert (await verifier.refresh({})).modules[0].name == "digits"


async def test_a_hub_that_never_answers_ends_at_the_deadline(link: Link, hub: FakeHub, state_dir: StatePaths) -> None:
    hub.answer = lambda get: None
    verifier = Verifier(build_trust(state_dir, "cam-17", HARDWARE, time.time), link, timeout_s=0.3)
    with pytest.raises(TrustError) as caught:
        await verifier.refresh({})
    assert caught.value.key == "unreachable"
    verifier.close()


async def test_a_cancelled_refresh_leaves_no_thread_waiting(verifier: Verifier, hub: FakeHub) -> None:
    hub.answer = lambda get: None
    refreshing = asyncio.create_task(verifier.refresh({}))
    await until(lambda: bool(hub.asked), "the unanswered request")
    refreshing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refreshing
    verifier.close()
    await until(lambda: not trust_threads(), "the thread to end")
