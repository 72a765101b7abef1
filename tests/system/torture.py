"""What a bad link must not do: updates under weather, with broker and hub dying in between, and nothing lost.

`endure` is one device's time under one weather. Used by the soak over emulated wires and by its short form over the
relay; what the weather is, and where the device lives, is theirs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from cloud_hub.rollouts.states import RolloutState
from support.waiting import until
from system.traffic import Traffic
from system.world import Device, World

NAME = "weather"
REQUESTS_BEFORE = 20
PAUSE_S = 0.05  # between predictions: some twenty samples a second, which every link here can carry

Fault = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Endured:
    """`seconds` that each update took, and predictions answered and returned as samples."""

    seconds: tuple[float, ...]
    samples: int


async def releases(world: World, count: int, extra_bytes: int) -> tuple[int, ...]:
    """Versions of one module that share nothing but the model's form, each with that many bytes beside it."""
    return tuple(
        [
            await world.release(seed, name=NAME, extra={"table.bin": random.Random(seed).randbytes(extra_bytes)})
            for seed in range(1, count + 1)
        ]
    )


async def endure(
    world: World,
    device: Device,
    versions: Sequence[int],
    faults: Sequence[Fault],
    begin: Callable[[], None],
    place: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Endured:
    """The first version is rolled out in good weather; `begin` changes it, then each other version meets one fault.

    Asserts that every update is committed, no prediction fails, and every one comes back as a sample and a row, once.
    """
    address = await world.roll_out(device, versions[0], NAME)
    seconds = []
    async with Traffic(address, device.name, kept=True, name=NAME, pause_s=PAUSE_S, place=place) as traffic:
        await until(lambda: len(traffic.answered) >= REQUESTS_BEFORE, "the application to be served", world.deadline_s)
        begin()
        for version, fault in zip(versions[1:], faults, strict=True):
            began = time.monotonic()
            rollout = await world.order(device, version, NAME)
            await fault()
            state, execution = await world.ended(rollout)
            assert state is RolloutState.FINISHED, (version, execution)
            assert await device.serves(version, NAME) == address
            seconds.append(time.monotonic() - began)
    assert traffic.failed == []
    assert traffic.answered == traffic.asked
    await world.arrived(device, tuple(versions), traffic.answered, NAME)
    return Endured(tuple(seconds), len(traffic.answered))
