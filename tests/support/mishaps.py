"""Rollouts over a site of replicas while parts of it are killed, and what must be true at the end.

Used by tests/replicas for a minute and by tests/soak for an hour.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from cloud_hub.asking.wanted import NewCommand
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.errors import OperatorError
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import ENDED, ExecutionState, RolloutState
from cloud_hub.rollouts.status import RolloutStatus
from cloud_hub.service import open_hub
from cloud_hub.simulator.fleet import Fleet
from cloud_hub.simulator.profile import Group, Profile, Steps
from cloud_hub.simulator.state import DeviceState
from support.history import read_history
from support.invariants import violations
from support.replicas import Site, holder, opened
from support.simulated import MODULE, members, publish
from support.waiting import until_async

PATIENCE_S = 240.0
T = TypeVar("T")
# Quick devices, so that a minute has whole rollouts; a tenth of them fails the first time that it tries.
PROFILE = Profile(
    report_every_s=10.0,
    window_every_s=20.0,
    connect_per_s=50.0,
    reconnect_s=3.0,
    answer_s=10.0,
    poll_s=20.0,
    steps=Steps(0.2, 0.2, 0.2, 0.5, 0.2, 0.5),
    groups=(Group("clumsy", 0.1, ends="failed", times=1),),
)


@dataclass
class Effects:
    """How often each command was carried out."""

    times: Counter[str] = field(default_factory=Counter)


@contextmanager
def counted() -> Iterator[Effects]:
    """What simulated devices do inside."""
    effects, did = Effects(), DeviceState.did

    def counting(state: DeviceState, command: str) -> bool:
        is_new = did(state, command)
        effects.times[command] += is_new
        return is_new

    DeviceState.did = counting  # type: ignore[method-assign, assignment]
    try:
        yield effects
    finally:
        DeviceState.did = did  # type: ignore[method-assign]


@asynccontextmanager
async def living(site: Site, devices: int, prefix: str) -> AsyncIterator[Fleet]:
    """A fleet of so many new devices, connected."""
    place, found = await members(site.paths("a").root, devices, prefix)
    async with Fleet(place, found, PROFILE) as fleet:
        await until_async(lambda: _all_speak(site, prefix, devices), "all devices to have reported", PATIENCE_S)
        yield fleet


async def new_version(site: Site, version: int) -> None:
    """Signed, its files in the bucket."""
    async with open_hub(site.paths("a")) as rooms:
        await publish(rooms, version, probation_s=0.3)


def wanted(version: int, prefix: str) -> NewRollout:
    """In three groups; those that fail are tried again."""
    return NewRollout(
        MODULE, version, f"id={prefix}-*", groups=("2", "30%", "rest"), success_threshold=60.0, error_threshold=60.0,
        min_count=5, device_deadline_s=PATIENCE_S, retries=2, retry_after_s=1.0, start=True,
    )  # fmt: skip


async def ended(site: Site, rollout: str) -> RolloutState:
    """Its end, as whichever replica answers says it."""
    found: list[RolloutStatus] = []

    async def has_ended() -> bool:
        found[:] = [await asked(site, lambda client: client.rollout(rollout))]
        return found[0].rollout.state in ENDED

    await until_async(has_ended, f"rollout {rollout} to end", PATIENCE_S)
    return found[0].rollout.state


async def verified(site: Site, rollout: str, count: int) -> None:
    """Until so many devices are, or it has ended."""

    async def are() -> bool:
        status = await asked(site, lambda client: client.rollout(rollout))
        return (
            status.rollout.state in ENDED
            or sum(group.states.get(ExecutionState.VERIFIED, 0) for group in status.groups) >= count
        )

    await until_async(are, f"{count} devices of rollout {rollout} to be verified", PATIENCE_S)


async def asked(site: Site, question: Callable[[HubClient], Awaitable[T]]) -> T:
    """What one of the replicas that run answers; the first that does."""
    answers: list[T] = []

    async def is_answered() -> bool:
        for name in list(site.hubs):
            with suppress(OperatorError):
                async with HubClient(site.context(name)) as client:
                    answers[:] = [await question(client)]
                    return True
        return False

    await until_async(is_answered, "one of the replicas to answer", PATIENCE_S)
    return answers[0]


async def begun(site: Site, version: int, prefix: str) -> str:
    """The rollout of that version. Asked again where the answer was lost: a second one would be refused."""
    known = {one.id for one in await asked(site, lambda client: client.rollouts(module=MODULE))}
    with suppress(OperatorError):
        async with HubClient(site.context(next(iter(site.hubs)))) as client:
            return (await client.create_rollout(wanted(version, prefix))).rollout.id
    fresh = [one.id for one in await asked(site, lambda client: client.rollouts(module=MODULE)) if one.id not in known]
    return fresh[0] if fresh else (await asked(site, lambda c: c.create_rollout(wanted(version, prefix)))).rollout.id


async def command_all(site: Site, prefix: str) -> None:
    """One command for each device."""
    with suppress(OperatorError):
        async with HubClient(site.context(next(iter(site.hubs)))) as client:
            await client.ask_devices(NewCommand("diagnostics", target=f"id={prefix}-*", expires_s=600.0))


# --- mishaps ------------------------------------------------------------------------------------------------------
async def kill_holder(site: Site) -> None:
    """The replica that moves rollouts; it is started again when the other one has taken over."""
    name = await holder(site)
    await asyncio.to_thread(site.kill_hub, name)
    await asked(site, lambda client: client.health())

    async def is_taken_over() -> bool:
        return await holder(site) not in ("", name)

    await until_async(is_taken_over, f"the lease of {name} to be taken over", PATIENCE_S)
    await asyncio.to_thread(site.start_hub, name)


async def restart_database(site: Site) -> None:
    await asyncio.to_thread(site.postgres.stop)
    await asyncio.to_thread(site.postgres.start)
    await asked(site, lambda client: client.rollouts())


async def restart_broker(site: Site) -> None:
    """Killed: what it had not written is gone."""
    await asyncio.to_thread(site.kill_broker)
    await asyncio.to_thread(site.start_broker)


async def store_away(site: Site) -> None:
    """For as long as one question takes."""
    with site.s3.away():
        await asked(site, lambda client: client.health())


MISHAPS = (kill_holder, restart_database, restart_broker, store_away)


def shuffled(chance: random.Random) -> Iterator[Callable[[Site], Awaitable[None]]]:
    """Without end; each comes up as often as the others."""
    while True:
        order = list(MISHAPS)
        chance.shuffle(order)
        yield from order


async def check(site: Site, effects: Effects) -> int:
    """Everything that was recorded, against what must hold; how many events there were."""
    store = await opened(site)
    try:
        found = await read_history(store, effects.times)
    finally:
        await store.close()
    assert violations(found) == []
    assert all(process.poll() is None for process in site.hubs.values()), "a replica has ended by itself"
    return len(found.events)


async def _all_speak(site: Site, prefix: str, count: int) -> bool:
    found = await asked(site, lambda client: client.devices(f"id={prefix}-*"))
    return sum(device.report_at is not None for device in found) == count
