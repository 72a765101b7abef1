"""Two replicas, and what is killed in the middle of rollouts: at the end everything is as if nothing had happened."""

from __future__ import annotations

import pytest

from cloud_hub.rollouts.states import RolloutState
from support.mishaps import (
    begun,
    check,
    command_all,
    counted,
    ended,
    kill_holder,
    living,
    new_version,
    restart_broker,
    restart_database,
    verified,
)
from support.replicas import Site

DEVICES = 30


@pytest.mark.timeout(900)
async def test_a_rollout_outlives_its_replica_its_database_and_its_broker(site: Site) -> None:
    await new_version(site, 1)
    await new_version(site, 2)
    with counted() as effects:
        async with living(site, DEVICES, "sim") as fleet:
            first = await begun(site, 1, "sim")
            await verified(site, first, 1)
            await kill_holder(site)
            assert await ended(site, first) is RolloutState.FINISHED
            second = await begun(site, 2, "sim")
            await verified(site, second, 1)
            await restart_database(site)
            await command_all(site, "sim")
            await verified(site, second, DEVICES // 2)
            await restart_broker(site)
            assert await ended(site, second) is RolloutState.FINISHED
            assert {module.version for device in fleet.devices for module in device.state.modules} == {2}
            assert await check(site, effects) > 4 * DEVICES
