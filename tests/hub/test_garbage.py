"""Garbage of one device names device and field, accuses no fleet of drift, and changes nothing for the others."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud_hub.blobs import FolderBlobs
from cloud_hub.events import Events
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.store.engine import Store
from modules.windows import Window, pack_counts, unpack_counts
from support.clock import SetClock
from support.monitoring import LOOK_S, Array, Built, Monitored, build_module, make_window

FEATURES = 3
BAD = "cam-bad"
GOOD = ("cam-1", "cam-2", "cam-3", "cam-4")
TRAINING = np.random.default_rng(53).normal(size=(4000, FEATURES))
DAY_S = 86_400.0
CALM_LOOKS, LOOKS = 4, 9

Spoil = Callable[[Built, Array, float], list[Window]]
Hub = Callable[[str], Awaitable[tuple[Monitored, Built]]]


@pytest.fixture
def make_hub(tmp_path: Path, migrated_database: bytes, stores: list[Store]) -> Hub:
    async def made(name: str) -> tuple[Monitored, Built]:
        path = tmp_path / f"{name}.sqlite3"
        path.write_bytes(migrated_database)
        store, clock = await Store.open(f"sqlite+aiosqlite:///{path}", migrate=False), SetClock()
        stores.append(store)
        hub = Monitored(store, FolderBlobs(tmp_path / name), Events(store, clock), clock)
        return hub, await build_module(store, hub.blobs, TRAINING)

    return made


@pytest.fixture
async def stores() -> list[Store]:
    return []


@pytest.fixture(autouse=True)
async def _closing(stores: list[Store]) -> object:
    yield
    for store in stores:
        await store.close()


def column(change: Callable[[Array], Array]) -> Spoil:
    """The second feature is another."""

    def spoil(built: Built, rows: Array, end: float) -> list[Window]:
        changed = rows.copy()
        changed[:, 1] = change(changed[:, 1])
        return [make_window(built, changed, end)]

    return spoil


def nan_storm(values: Array) -> Array:
    return np.where(np.arange(len(values)) % 3 < 2, np.nan, values)


def other_schema(built: Built, rows: Array, end: float) -> list[Window]:
    window = make_window(built, rows, end)
    return [msgspec.structs.replace(window, counts=pack_counts([1] * (built.profile.cells - 1)))]


def other_reference(built: Built, rows: Array, end: float) -> list[Window]:
    return [msgspec.structs.replace(make_window(built, rows, end), reference_sha256="0" * 64)]


def moved(by_s: float) -> Spoil:
    return lambda built, rows, end: [make_window(built, rows, end + by_s)]


def clock_set(built: Built, rows: Array, end: float) -> list[Window]:
    return [msgspec.structs.replace(make_window(built, rows, end), clock_jumps=2, clock_jump_s=-90.0)]


def late_rows(built: Built, rows: Array, end: float) -> list[Window]:
    return [msgspec.structs.replace(make_window(built, rows, end), late=len(rows) // 2)]


def million(built: Built, rows: Array, end: float) -> list[Window]:
    window = make_window(built, rows, end)
    counts = [10_000 * count for count in unpack_counts(window.counts, built.profile.cells)]
    moments = (10_000 * np.frombuffer(window.moments, "<f4")).astype("<f4").tobytes()
    return [msgspec.structs.replace(window, rows=10_000 * len(rows), counts=pack_counts(counts), moments=moments)]


def stuck(built: Built, rows: Array, end: float) -> list[Window]:
    changed = rows.copy()
    changed[:, 1] = 0.4
    return [msgspec.structs.replace(window, still=b"\x02") for window in many_windows(built, changed, end)]


def many_windows(built: Built, rows: Array, end: float) -> list[Window]:
    """As most devices send them: several in a look."""
    return [make_window(built, part, end - 5.0 * place, 5.0) for place, part in enumerate(np.split(rows, 10))]


def unspoilt(built: Built, rows: Array, end: float) -> list[Window]:
    return [make_window(built, rows, end)]


async def live(hub: Monitored, built: Built, spoil: Spoil | None, fine: Spoil = unspoilt) -> None:
    """Good looks, then looks in which the bad device sends garbage; without `spoil` it sends nothing ever."""
    assert isinstance(hub.clock, SetClock)
    for look in range(LOOKS):
        for place, device in enumerate((*GOOD, BAD)):
            rows = np.random.default_rng((look, place)).normal(size=(120, FEATURES))
            end = hub.clock()
            if device != BAD:
                await hub.send(device, make_window(built, rows, end))
            elif spoil is not None:
                await hub.send(BAD, *(fine if look < CALM_LOOKS else spoil)(built, rows, end), stream="window")
        await hub.alerts.run_due()
        hub.clock.advance(LOOK_S)


async def evidence(hub: Monitored, device: str) -> DriftReport:
    """But for the threshold, which all that are watched share."""
    (report,) = await hub.reports.drift_of("digits", device=device)
    features = tuple(msgspec.structs.replace(one, threshold=0.0) for one in report.features)
    rates = tuple(msgspec.structs.replace(one, threshold=0.0) for one in report.rates)
    return msgspec.structs.replace(report, features=features, rates=rates, threshold=0.0)


async def alerts(hub: Monitored) -> list[Alert]:
    return await hub.alerts.list(state="live")


FIELD = "x[1]"


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        pytest.param(column(nan_storm), FIELD, id="NaN storm"),
        pytest.param(column(lambda values: 1000 * values), FIELD, id="thousand times"),
        pytest.param(column(lambda values: 1.8 * values + 32), FIELD, id="Fahrenheit"),
        pytest.param(other_schema, "counts", id="other schema"),
        pytest.param(other_reference, "reference", id="other reference"),
        pytest.param(moved(-365 * DAY_S), "clock", id="a year back"),
        pytest.param(moved(DAY_S), "clock", id="a day ahead"),
        pytest.param(clock_set, "clock-set", id="clock set"),
        pytest.param(late_rows, "late", id="late rows"),
        pytest.param(million, "flood", id="a million rows"),
    ],
)
async def test_garbage_of_one_device_is_bad_data_of_that_device_and_nothing_else(
    make_hub: Hub, spoil: Spoil, name: str
) -> None:
    hub, built = await make_hub("with")
    await live(hub, built, spoil)
    alone, same = await make_hub("without")
    await live(alone, same, None)

    found = await alerts(hub)
    quality = [alert for alert in found if alert.kind == "quality"]
    assert {alert.scope for alert in quality} == {f"device:{BAD}"}
    assert name in {told for alert in quality for told in alert.evidence.names}
    assert {alert.scope for alert in found if alert.kind == "drift"} <= {f"device:{BAD}"}
    assert [alert.kind for alert in found if alert.parent is None] == ["quality"]
    for device in GOOD:
        assert await evidence(hub, device) == await evidence(alone, device)
    assert await alerts(alone) == []


async def test_a_stuck_sensor_is_named_with_its_field(make_hub: Hub) -> None:
    hub, built = await make_hub("stuck")
    await live(hub, built, stuck, many_windows)
    found = await alerts(hub)
    (quality,) = (alert for alert in found if alert.kind == "quality")
    assert (quality.scope, quality.evidence.names) == (f"device:{BAD}", (FIELD,))
    assert [rate.problem for rate in quality.evidence.rates] == ["still"]
    assert {alert.scope for alert in found} == {f"device:{BAD}"}


async def test_windows_that_come_twice_and_in_any_order_count_once(make_hub: Hub) -> None:
    straight, built = await make_hub("straight")
    shuffled, same = await make_hub("shuffled")
    windows = []
    for look in range(6):
        rows = np.random.default_rng((look, 99)).normal(size=(120, FEATURES))
        window = make_window(built, rows, straight.clock() + look * LOOK_S)
        windows.append(msgspec.structs.replace(window, id=f"w{look}"))
    for hub in (straight, shuffled):
        assert isinstance(hub.clock, SetClock)
        hub.clock.advance(6 * LOOK_S)
    await straight.send(GOOD[0], *windows)
    for order in ((3, 1, 1, 5), (0, 5, 2, 3), (4, 4, 0)):
        await shuffled.send(GOOD[0], *(windows[place] for place in order))
    for hub in (straight, shuffled):
        await hub.alerts.run_due()
    assert await evidence(shuffled, GOOD[0]) == await evidence(straight, GOOD[0])
    assert await evidence(shuffled, "") == await evidence(straight, "")
    assert await alerts(shuffled) == []
    assert same.manifest_sha256 == built.manifest_sha256
