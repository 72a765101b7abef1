"""A fleet under watch that lives look by look: every device draws rows, counts them and sends a window in each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import insert

from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from support.clock import SetClock
from support.fleets import certificate
from support.monitoring import LOOK_S, Array, Built, Monitored, make_window

START = 1_700_000_000.0


async def know_devices(store: Store, tags: Mapping[str, Mapping[str, str]]) -> None:
    """Devices of one profile, with these tags."""
    pem = certificate("watched")
    rows = [
        {"id": device, "profile": "edge", "tags": dict(own), "certificate": pem, "created_at": 0.0}
        for device, own in tags.items()
    ]
    async with store.write() as connection:
        await connection.execute(insert(devices), [{**row, "director_version": 1, "report_counter": 0} for row in rows])


@dataclass
class Fleet:
    """`rows` draws what a device sees in a look; what is given for a device in `live` is in its place."""

    hub: Monitored
    built: Built
    names: Sequence[str]
    features: int
    number: int = 100
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(29))

    def rows(self, shift: float = 0.0, feature: int = 1, number: int = 0) -> Array:
        drawn = self.random.normal(size=(number or self.number, self.features))
        drawn[:, feature] += shift
        return drawn

    async def live(self, looks: int, others: Mapping[str, Callable[[], Array | None]] | None = None) -> None:
        """`looks` looks go by. None as rows: the device sends nothing."""
        clock = self.hub.clock
        assert isinstance(clock, SetClock)
        given = others or {}
        for _ in range(looks):
            for device in self.names:
                drawn = given[device]() if device in given else self.rows()
                if drawn is not None:
                    await self.hub.send(device, make_window(self.built, drawn, clock()))
            await self.hub.alerts.run_due()
            clock.advance(LOOK_S)

    async def open(self, kind: str = "drift", attached: bool = False) -> list[Alert]:
        """Live alerts that speak for themselves."""
        found = await self.hub.alerts.list(state="live", attached=attached)
        return [alert for alert in found if kind in ("", alert.kind)]
