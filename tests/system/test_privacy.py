"""A device that begins to promise privacy while it serves: noise in what leaves, no samples, accounts that agree."""

from __future__ import annotations

import pytest

from cloud_hub.asking.policies import PolicyChange
from cloud_hub.operator.cli.sampling import _promise
from cloud_hub.privacy import PrivacyQuery, PrivacySpent
from modules.privacy import Privacy
from system.traffic import predict
from system.world import MODEL, World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]
EPSILON = 8.0


async def test_from_the_promise_on_windows_have_noise_and_samples_stay(world: World) -> None:
    async with world.device("private-1") as device:
        address = await world.roll_out(device, 1)
        before = await predict(address, "open", 5)
        await world.arrived(device, (1,), before)
        await world.client.change_sampling(
            PolicyChange(MODEL, f"id={device.name}", _promise(str(EPSILON), delta=1e-6, rows_per_person=1))
        )
        spent: list[PrivacySpent] = []

        async def charged(prefix: str, windows: int) -> bool:
            await predict(address, prefix, 3)
            spent[:] = await world.client.privacy(PrivacyQuery(device=device.name))
            return bool(spent) and spent[0].windows >= windows

        await world.until("the first private window", lambda: charged("meanwhile", 1))
        wanted = spent[0].windows + 2
        await world.until("two more of them", lambda: charged("hidden", wanted))
        assert [id_ for id_ in await world.sampled(device) if id_.startswith("hidden")] == []
        share = Privacy(EPSILON).rho_per_window(0.5)
        (day,) = spent
        assert day.rho == pytest.approx(day.windows * share, rel=1e-3)
        wanted = day.windows
        status = await device.until("its own account", lambda s: any(p.windows >= wanted for p in s.report.privacy))
        # At the most the window that was open when the promise was made: its rows came under none.
        assert status.report.privacy[0].withheld <= 1
