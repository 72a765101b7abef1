"""An hour of rollouts over two replicas, while replicas, database, broker and store are killed and come back.

MOORING_SOAK_S in the environment is how many seconds instead.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from cloud_hub.rollouts.states import RolloutState
from support.mishaps import begun, check, command_all, counted, ended, living, new_version, shuffled, verified
from support.replicas import running_site

SOAK_S = float(os.environ.get("MOORING_SOAK_S", "3600"))
DEVICES = 60
SEED = 7


@pytest.mark.soak
@pytest.mark.timeout(2 * SOAK_S + 1800)
async def test_rollouts_for_an_hour_of_mishaps_leave_nothing_that_must_not_be(tmp_path: Path) -> None:
    chance, loop = random.Random(SEED), asyncio.get_running_loop()
    mishaps, rollouts = shuffled(chance), 0
    with running_site(tmp_path / "site") as site, counted() as effects:
        async with living(site, DEVICES, "sim"):
            until = loop.time() + SOAK_S
            while loop.time() < until:
                rollouts += 1
                await new_version(site, rollouts)
                rollout = await begun(site, rollouts, "sim")
                for share in (0.05, 0.3, 0.6):
                    await verified(site, rollout, int(share * DEVICES))
                    await next(mishaps)(site)
                    if chance.random() < 0.3:
                        await command_all(site, "sim")
                assert await ended(site, rollout) is RolloutState.FINISHED
                await check(site, effects)
    assert rollouts > 1
