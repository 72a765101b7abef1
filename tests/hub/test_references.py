"""Counts are compared with what was chosen: training, a period, another version, or what the other devices count."""

import numpy as np
import pytest

from cloud_hub.blobs import Blobs
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.reference import TRAINING, BesideOthers, Reference, filled, matched, parse
from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import looks
from support.clock import SetClock
from support.monitoring import LOOK_S, Monitored, build_module
from support.watched import START, Fleet

FEATURES = 2
NAMES = tuple(f"cam-{place}" for place in range(5))
TRAINING_ROWS = np.random.default_rng(47).normal(size=(4000, FEATURES))


@pytest.fixture
async def fleet(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Fleet:
    hub = Monitored(store, blobs, events, clock)
    return Fleet(hub, await build_module(store, blobs, TRAINING_ROWS), NAMES, FEATURES)


async def drift(fleet: Fleet, device: str = "", reference: Reference | None = None) -> DriftReport:
    (report,) = await fleet.hub.reports.drift_of("digits", device=device, reference=reference)
    return report


def period(first: int, last: int) -> Reference:
    """Of these looks, counted from the first of all."""
    return Reference("period", START + (first - 1) * LOOK_S, START + last * LOOK_S)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("training", TRAINING),
        ("fleet", Reference("fleet")),
        ("version:3", Reference("version", version=3)),
        ("period:2026-11-01..2026-11-08T12:00", Reference("period", 1793491200.0, 1794139200.0)),
        ("period:2026-11-01T00:00+02:00..2026-11-02", Reference("period", 1793484000.0, 1793577600.0)),
    ],
)
def test_a_reference_is_read_as_it_is_written(text: str, reference: Reference) -> None:
    assert parse(text) == reference
    assert parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text",
    ["", "train", "version:", "version:0", "version:x", "period:", "period:2026..", "period:2026-11-02..2026-11-01",
     "period:yesterday..today", "fleet:cam-1", "training:2"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="reference: expected"):
        parse(text)


async def test_a_fleet_that_never_was_like_its_training_data_is_calm_against_a_period_of_its_own(fleet: Fleet) -> None:
    elsewhere = dict.fromkeys(NAMES, lambda: fleet.rows(1.0))
    await fleet.live(6, elsewhere)
    assert (await drift(fleet)).alarm
    watch = await fleet.hub.alerts.watches.set("digits", "fleet", period(0, 5), "ann")
    assert await fleet.hub.alerts.watches.all() == [watch]
    await fleet.live(4, elsewhere)
    report = await drift(fleet)
    assert (report.alarm, report.reference) == (False, str(watch.reference))
    assert report.since is not None
    assert report.since >= watch.reference.end  # no row is on both sides
    await fleet.live(4)
    assert (await drift(fleet)).alarm
    assert [event.details["reference"] for event in await fleet.hub.events.list("module.watched")] == [
        str(watch.reference)
    ]


async def test_a_period_stays_what_it_was_when_its_looks_are_forgotten(fleet: Fleet) -> None:
    await fleet.live(6, dict.fromkeys(NAMES, lambda: fleet.rows(1.0)))
    await fleet.hub.alerts.watches.set("digits", "fleet", period(0, 3), "ann")
    before = await drift(fleet)
    async with fleet.hub.store.write() as connection:
        await connection.execute(looks.delete().where(looks.c.start < START + 2 * LOOK_S))
    assert (await drift(fleet)).features == before.features


async def test_back_to_training_data(fleet: Fleet) -> None:
    await fleet.live(4, dict.fromkeys(NAMES, lambda: fleet.rows(1.0)))
    await fleet.hub.alerts.watches.set("digits", "fleet", period(0, 2), "ann")
    await fleet.hub.alerts.watches.set("digits", "fleet", TRAINING, "ann")
    assert await fleet.hub.alerts.watches.all() == []
    assert (await drift(fleet)).reference == "training"


async def test_another_version_is_compared_with_where_its_features_have_the_same_cells(fleet: Fleet) -> None:
    hub = fleet.hub
    await fleet.live(5, dict.fromkeys(NAMES, lambda: fleet.rows(1.0)))
    fleet.built = await build_module(hub.store, hub.blobs, TRAINING_ROWS, version=2)
    await fleet.live(4, dict.fromkeys(NAMES, lambda: fleet.rows(1.0)))
    against = await drift(fleet, reference=parse("version:1"))
    assert (against.version, against.reference, against.alarm) == (2, "version:1", False)
    assert (await drift(fleet)).alarm  # against its training data


async def test_the_odd_one_out_is_found_while_the_world_changes_for_all(fleet: Fleet) -> None:
    await fleet.hub.alerts.watches.set("digits", "fleet", Reference("fleet"), "ann")
    world = iter(np.linspace(0, 2, 100))
    now = [0.0]

    def like_all() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        return fleet.rows(now[0])

    for _ in range(10):
        now[0] = float(next(world))
        await fleet.live(1, dict.fromkeys(NAMES, like_all) | {"cam-3": lambda: fleet.rows(now[0] + 1.0)})
    assert "device:cam-3" in {alert.scope for alert in await fleet.open()}
    assert (await drift(fleet, "cam-1")).reference == "fleet"
    assert not (await drift(fleet, "cam-1")).alarm
    assert (await drift(fleet, "cam-3")).alarm


async def test_with_two_devices_nobody_knows_which_one_is_odd(fleet: Fleet) -> None:
    fleet.names = NAMES[:2]
    await fleet.live(3)
    with pytest.raises(Conflict, match="digits:1 on device:cam-0: fleet: too few others were counted"):
        await drift(fleet, NAMES[0], Reference("fleet"))


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("version:1", "not compared with itself"),
        ("fleet", "it is what one device is compared with"),
        ("period:2001-01-01..2001-01-02", "nothing was counted there"),
    ],
)
async def test_what_cannot_be_compared_with_is_refused_and_not_answered_with_training(
    fleet: Fleet, reference: str, words: str
) -> None:
    await fleet.live(3)
    with pytest.raises(Conflict, match=words):
        await drift(fleet, reference=parse(reference))


async def test_to_look_at_another_reference_once_changes_nothing(fleet: Fleet) -> None:
    await fleet.live(4)
    assert (await drift(fleet, NAMES[0], Reference("fleet"))).reference == "fleet"
    assert (await drift(fleet, NAMES[0])).reference == "training"
    assert await fleet.hub.alerts.watches.all() == []


async def test_a_reference_in_which_nothing_was_counted_is_refused(fleet: Fleet) -> None:
    await fleet.live(2)
    empty = Reference("period", 1.0, 2.0)
    with pytest.raises(Conflict, match=r"nothing was counted there.*nothing was changed"):
        await fleet.hub.alerts.watches.set("digits", "fleet", empty, "ann")
    with pytest.raises(NotFound, match="no module faces"):
        await fleet.hub.alerts.watches.set("faces", "fleet", period(0, 2), "ann")
    assert await fleet.hub.alerts.watches.all() == []


async def test_features_without_rows_in_the_reference_keep_their_training_rows(fleet: Fleet) -> None:
    layout = Layout(fleet.built.profile)
    counts = layout.reference.copy()
    counts[: layout.starts[1]] = 0
    counts[layout.starts[1] :] = 7
    both = filled(layout, counts)
    assert (both[: layout.starts[1]] == layout.reference[: layout.starts[1]]).all()
    assert (both[layout.starts[1] :] == 7).all()
    assert (matched(layout, layout, counts) == counts).all()


async def test_each_span_of_looks_has_the_others_of_the_same_looks_as_reference(fleet: Fleet) -> None:
    layout = Layout(fleet.built.profile)
    others = np.tile(layout.reference, (6, 1))
    own = others // 40
    beside = BesideOthers(layout, others)
    assert beside.drift_that_matters(own).max() == 0.0
    assert beside.rates_that_matter(own).max() == 0.0
    moved = own.copy()
    moved[3:] = np.roll(moved[3:], 4, axis=1)
    assert beside.scan(moved).drift_that_matters.max() > 20
