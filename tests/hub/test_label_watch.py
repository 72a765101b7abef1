"""Alerts from labels: a change of concept, and a module that is worse than it is asked to be."""

import numpy as np
import pytest
from sqlalchemy import select

from cloud_hub.blobs import Blobs
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.events import Events
from cloud_hub.labels.bounds import NewBound
from cloud_hub.labels.concept import MAX_ROWS, Row, replay
from cloud_hub.labels.rows import NewLabel
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events as events_table
from support.clock import SetClock
from support.labels import Labelled, build_classifier, build_regressor, sample, window
from support.monitoring import Built

CAT = (0.8, 0.1, 0.1)


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Labelled:
    return Labelled(store, blobs, events, clock)


@pytest.fixture
async def built(store: Store, blobs: Blobs) -> Built:
    return await build_classifier(store, blobs)


async def predict(
    hub: Labelled, built: Built, clock: SetClock, name: str, wrong: list[bool], device: str = "cam-1"
) -> list[NewLabel]:
    """One prediction a minute; the labels that say which of them were wrong."""
    start = clock()
    items = [sample(built, f"{name}-{i}", start + 60 * i, {"scores": CAT}) for i in range(len(wrong))]
    for place in range(0, len(items), 400):
        await hub.send(device, *items[place : place + 400])
    clock.advance(60 * len(wrong))
    return [NewLabel(f"{name}-{i}", "dog" if bad else "cat") for i, bad in enumerate(wrong)]


async def take(hub: Labelled, labels: list[NewLabel]) -> None:
    for place in range(0, len(labels), 500):
        await hub.take(*labels[place : place + 500])


async def weighed(hub: Labelled, clock: SetClock) -> list[Alert]:
    clock.advance(120)
    await hub.labels.watch.run_due()
    return await hub.alerts.list("open")


def errors(rng: np.random.Generator, rows: int, rate: float) -> list[bool]:
    return [bool(one) for one in rng.random(rows) < rate]


async def test_a_change_of_concept_is_told_with_its_time_and_ends_when_it_ends(
    hub: Labelled, built: Built, clock: SetClock, store: Store
) -> None:
    rng = np.random.default_rng(1)
    await take(hub, await predict(hub, built, clock, "before", errors(rng, 600, 0.05)))
    assert await weighed(hub, clock) == []
    changed_at = clock()
    await take(hub, await predict(hub, built, clock, "after", errors(rng, 150, 0.5)))
    alerts = {alert.scope: alert for alert in await weighed(hub, clock)}
    # The one device that there is has the alert; the fleet without it has nothing to tell.
    assert list(alerts) == ["device:cam-1"]
    alert = alerts["device:cam-1"]
    assert (alert.kind, alert.module, alert.version) == ("concept", "digits", 1)
    assert abs(alert.evidence.since - changed_at) < 60 * 20
    (fact,) = alert.evidence.facts
    assert fact.name == "scores"
    assert fact.value > 0.35
    assert fact.reference == pytest.approx(0.05, abs=0.04)
    await take(hub, await predict(hub, built, clock, "again", errors(rng, 600, 0.05)))
    assert await weighed(hub, clock) == []
    async with store.read() as connection:
        kinds = (await connection.execute(select(events_table.c.kind).order_by(events_table.c.id))).scalars().all()
    assert [kind for kind in kinds if kind.startswith("alert.")] == ["alert.opened", "alert.resolved"]


async def test_late_and_corrected_labels_give_the_alert_that_timely_ones_would(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    rng = np.random.default_rng(2)
    labels = await predict(hub, built, clock, "a", errors(rng, 500, 0.05) + errors(rng, 150, 0.5))
    mixed = [labels[i] for i in rng.permutation(len(labels))]
    await take(hub, [NewLabel(one.prediction_id, "cat", at=1.0) for one in mixed[:300]])
    await take(hub, mixed[:400])
    await weighed(hub, clock)
    await take(hub, mixed[400:])
    (late,) = await weighed(hub, clock)
    await hub.alerts.calm("concept", late.group)
    await take(hub, labels)
    hub.labels.watch.touched([built.manifest_sha256])
    (timely,) = await weighed(hub, clock)
    assert timely.evidence.facts == late.evidence.facts
    assert timely.evidence.since == late.evidence.since


async def test_steady_errors_alarm_nobody(hub: Labelled, built: Built, clock: SetClock) -> None:
    rng = np.random.default_rng(3)
    for part in range(4):
        await take(hub, await predict(hub, built, clock, f"p{part}", errors(rng, 400, 0.2), f"cam-{part % 2}"))
        assert await weighed(hub, clock) == []


async def test_a_change_on_all_devices_is_the_fleets(hub: Labelled, built: Built, clock: SetClock) -> None:
    """Each device has too few labels to be watched alone."""
    rng = np.random.default_rng(4)
    for rate, rows in ((0.05, 40), (0.6, 15)):
        for device in range(20):
            name = f"{rate}-{device}"
            await take(hub, await predict(hub, built, clock, name, errors(rng, rows, rate), f"cam-{device}"))
    (alert,) = await weighed(hub, clock)
    assert (alert.kind, alert.scope) == ("concept", "fleet")


async def test_what_somebody_resolved_is_not_told_again_and_what_comes_after_is(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    rng = np.random.default_rng(9)
    wrong = errors(rng, 400, 0.05) + errors(rng, 100, 0.5)
    await take(hub, await predict(hub, built, clock, "a", wrong))
    (alert,) = await weighed(hub, clock)
    await hub.alerts.resolve(alert.id, "alice", "the new labels are right")
    hub.labels.watch.touched([built.manifest_sha256])
    assert await weighed(hub, clock) == []
    clock.advance(3600)
    await take(hub, await predict(hub, built, clock, "b", errors(rng, 300, 0.4)))
    assert await weighed(hub, clock) == []  # as it has been since: that is learnt anew
    await take(hub, await predict(hub, built, clock, "c", errors(rng, 100, 0.95)))
    assert [one.kind for one in await weighed(hub, clock)] == ["concept"]


async def test_an_alert_of_a_build_that_no_longer_runs_is_superseded(
    hub: Labelled, built: Built, store: Store, blobs: Blobs, clock: SetClock
) -> None:
    rng = np.random.default_rng(10)
    scores = np.tile(np.array(CAT, np.float32), (50, 1))
    await hub.send("cam-1", window(built, scores, clock()))
    wrong = errors(rng, 400, 0.05) + errors(rng, 100, 0.5)
    await take(hub, await predict(hub, built, clock, "a", wrong))
    assert len(await weighed(hub, clock)) == 1
    second = await build_classifier(store, blobs, version=2)
    clock.advance(8000)
    await hub.send("cam-1", window(second, scores, clock()))
    assert await weighed(hub, clock) == []
    (alert,) = await hub.alerts.list("resolved")
    assert alert.evidence.resolution == "superseded"


async def test_labels_that_came_while_nobody_watched_are_weighed_after_a_start(
    hub: Labelled, built: Built, store: Store, blobs: Blobs, events: Events, clock: SetClock
) -> None:
    rng = np.random.default_rng(11)
    wrong = errors(rng, 400, 0.05) + errors(rng, 100, 0.5)
    await take(hub, await predict(hub, built, clock, "a", wrong))
    started = Labelled(store, blobs, events, clock)
    await started.labels.watch.run_due()
    assert [one.kind for one in await started.alerts.list("open")] == ["concept"]


async def test_a_module_that_is_worse_than_asked_for_is_told_once_it_is_proven(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    await hub.labels.bounds.set(NewBound("digits", "accuracy", 0.9), "alice")
    rng = np.random.default_rng(5)
    await take(hub, await predict(hub, built, clock, "few", errors(rng, 20, 0.3)))
    assert await weighed(hub, clock) == []  # worse, and not proven
    await take(hub, await predict(hub, built, clock, "many", errors(rng, 250, 0.3)))
    alerts = [alert for alert in await weighed(hub, clock) if alert.kind == "performance"]
    assert alerts
    (fact,) = alerts[0].evidence.facts
    assert (fact.name, fact.reference) == ("scores", 0.9)
    assert "at least 0.9 is asked for" in fact.text
    await take(hub, await predict(hub, built, clock, "good", errors(rng, 400, 0.02)))
    assert [alert for alert in await weighed(hub, clock) if alert.kind == "performance"] == []


async def test_a_mean_error_above_its_bound_is_told(hub: Labelled, store: Store, blobs: Blobs, clock: SetClock) -> None:
    built = await build_regressor(store, blobs, name="arm")
    await hub.labels.bounds.set(NewBound("arm", "mae", 1.0, "place[0]"), "alice")
    rng = np.random.default_rng(6)
    places = 10.0 + rng.normal(size=200) * 3
    await hub.send("arm-1", *(sample(built, f"p{i}", clock() + i, {"place": (places[i], 0.0)}) for i in range(200)))
    await hub.take(*(NewLabel(f"p{i}", [10.0, None]) for i in range(200)))
    (alert,) = await weighed(hub, clock)
    assert (alert.kind, alert.evidence.facts[0].reference) == ("performance", 1.0)


async def test_bounds_are_set_changed_and_removed_on_the_record(hub: Labelled, built: Built, store: Store) -> None:
    bounds = hub.labels.bounds
    await bounds.set(NewBound("digits", "accuracy", 0.9), "alice")
    await bounds.set(NewBound("digits", "accuracy", 0.95), "bob")
    assert [(one.bound, one.set_by) for one in await bounds.list("digits")] == [(0.95, "bob")]
    await bounds.remove("digits", "", "alice")
    assert await bounds.list() == []
    with pytest.raises(NotFound, match="no bound of output"):
        await bounds.remove("digits", "", "alice")
    with pytest.raises(BadRequest, match="between 0 and 1"):
        await bounds.set(NewBound("digits", "accuracy", 1.5), "alice")
    with pytest.raises(NotFound, match="no module faces"):
        await bounds.set(NewBound("faces", "mae", 1.5), "alice")
    async with store.read() as connection:
        query = select(events_table.c.kind).where(events_table.c.kind.startswith("quality."))
        kinds = (await connection.execute(query.order_by(events_table.c.id))).scalars().all()
    assert kinds == ["quality.bound-set", "quality.bound-set", "quality.bound-removed"]


def test_one_wild_number_is_one_error_and_a_lasting_growth_is_a_change() -> None:
    rng = np.random.default_rng(7)
    calm = [Row(float(i), "a", 1000 * float(rng.normal()), 1.0) for i in range(800)]
    wild = [*calm[:400], Row(400.0, "a", 1e30, 1.0), *calm[401:]]
    assert replay(wild, True, 1e5) is None
    grown = [*calm[:600], *(Row(row.at, "a", row.error * 5, 1.0) for row in calm[600:])]
    change = replay(grown, True, 1e5)
    assert change is not None
    assert abs(change.since - 600) < 60


def test_rows_of_a_heavily_sampled_stratum_do_not_pass_for_a_change() -> None:
    """Low confidence is sampled more from the middle on: more errors come, each of which stands for fewer."""
    rng = np.random.default_rng(8)
    rows = []
    for i in range(MAX_ROWS // 4):
        low = rng.random() < (0.1 if i < 2000 else 0.9)
        chance = (0.01 if i < 2000 else 0.81) if low else 0.09
        rows.append(Row(float(i), "a", float(rng.random() < (0.4 if low else 0.05)), 0.09 / chance if low else 1.0))
    assert replay(rows, False, 1e6) is None
    assert replay([row._replace(weight=1.0) for row in rows], False, 1e6) is not None
