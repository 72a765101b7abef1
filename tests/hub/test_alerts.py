"""Alerts open on evidence, name the device and features behind it, and are resolved when it has gone."""

import numpy as np
import pytest
from sqlalchemy import insert

from cloud_hub.blobs import Blobs
from cloud_hub.errors import NotFound
from cloud_hub.events import Events
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.monitoring.looks import Group
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments
from support.clock import SetClock
from support.monitoring import LOOK_S, Array, Built, Monitored, build_module, make_window
from support.statements import noted
from support.waiting import until_async

RANDOM = np.random.default_rng(17)
FEATURES = 6
FLEET = ("edge-a", "edge-b", "edge-c", "edge-d", "edge-e")


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Monitored:
    return Monitored(store, blobs, events, clock)


@pytest.fixture
async def built(store: Store, blobs: Blobs) -> Built:
    return await build_module(store, blobs, RANDOM.normal(size=(4000, FEATURES)))


def rows(shift: float = 0.0, missing: float = 0.0, number: int = 100) -> Array:
    """Rows of which feature 2 may be shifted or partly missing."""
    drawn = RANDOM.normal(size=(number, FEATURES))
    drawn[:, 2] += shift
    drawn[RANDOM.random(number) < missing, 2] = np.nan
    return drawn


async def live(hub: Monitored, built: Built, looks: int, devices: dict[str, Array | None]) -> None:
    """`looks` looks go by; each device sends one window of such rows in each (None: of ordinary rows)."""
    for _ in range(looks):
        for device, example in devices.items():
            drawn = rows() if example is None else example[RANDOM.permutation(len(example))[:100]]
            await hub.send(device, make_window(built, drawn, hub.clock()))
        await hub.alerts.run_due()
        assert isinstance(hub.clock, SetClock)
        hub.clock.advance(LOOK_S)


def calm(*devices: str) -> dict[str, Array | None]:
    return dict.fromkeys(devices or FLEET)


async def open_alerts(hub: Monitored, kind: str = "") -> list[Alert]:
    return [alert for alert in await hub.alerts.list(state="open") if kind in ("", alert.kind)]


async def test_a_calm_fleet_has_no_alerts(hub: Monitored, built: Built) -> None:
    await live(hub, built, 25, calm())
    assert await hub.alerts.list() == []
    (report,) = await hub.reports.drift_of("digits")
    assert (report.alarm, report.looks, report.rows) == (False, 25, 25 * 100 * len(FLEET))


async def test_one_drifting_device_is_named_and_the_fleet_is_not_accused(hub: Monitored, built: Built) -> None:
    await live(hub, built, 10, calm())
    await live(hub, built, 6, calm() | {"edge-c": rows(shift=1.0, number=5000)})
    (alert,) = await open_alerts(hub)
    assert (alert.kind, alert.scope, alert.module) == ("drift", "device:edge-c", "digits")
    assert [feature.name for feature in alert.evidence.features] == ["x[2]"]
    assert alert.evidence.features[0].log_bf >= alert.evidence.threshold
    assert 0.4 < (alert.evidence.features[0].mean_shift or 0.0) < 1.4  # of eight looks merged, six are shifted
    # Since when: the looks of the change, give or take one.
    assert alert.evidence.since == pytest.approx(1_700_000_000 + 10 * LOOK_S, abs=2 * LOOK_S)


async def test_a_drifting_fleet_is_one_alert_with_each_devices_share(hub: Monitored, built: Built) -> None:
    await live(hub, built, 6, {device: rows(shift=0.5, number=5000) for device in FLEET})
    alerts = {alert.scope: alert for alert in await open_alerts(hub)}
    assert "fleet" in alerts
    shares = alerts["fleet"].evidence.devices
    assert {share.device for share in shares} == set(FLEET)
    assert sum(share.share for share in shares) == pytest.approx(1.0)


async def test_the_only_device_of_a_fleet_is_accused_as_a_device(hub: Monitored, built: Built) -> None:
    await live(hub, built, 6, {"edge-a": rows(shift=1.0, number=5000)})
    assert [alert.scope for alert in await open_alerts(hub)] == ["device:edge-a"]


async def test_an_alert_stays_one_alert_and_is_resolved_after_calm_looks(hub: Monitored, built: Built) -> None:
    await live(hub, built, 6, calm() | {"edge-c": rows(shift=1.5, number=5000)})
    (first,) = await open_alerts(hub, "drift")
    await live(hub, built, 6, calm() | {"edge-c": rows(shift=1.5, number=5000)})
    (still,) = await open_alerts(hub, "drift")
    assert (still.id, still.opened_at) == (first.id, first.opened_at)
    assert still.updated_at > first.updated_at
    await live(hub, built, 2, calm())
    assert [alert.id for alert in await open_alerts(hub, "drift")] == [first.id]
    await live(hub, built, 8, calm())
    assert await open_alerts(hub, "drift") == []
    resolved = {alert.id: alert for alert in await hub.alerts.list()}[first.id]
    assert (resolved.state, resolved.evidence.resolution) == ("resolved", "calm")


async def test_after_an_alert_is_resolved_the_old_drift_does_not_count_and_new_drift_opens_it_again(
    hub: Monitored, built: Built
) -> None:
    await live(hub, built, 6, calm() | {"edge-c": rows(shift=1.5, number=5000)})
    await live(hub, built, 14, calm())
    assert await open_alerts(hub) == []
    (report,) = await hub.reports.drift_of("digits", device="edge-c")
    assert not report.alarm
    await live(hub, built, 6, calm() | {"edge-c": rows(shift=1.5, number=5000)})
    (alert,) = await open_alerts(hub, "drift")
    assert alert.scope == "device:edge-c"
    changes = [change.change for change in (await hub.alerts.detail(alert.id)).history]
    assert changes == ["opened", "resolved", "reopened"]


async def test_drift_that_comes_back_after_long_is_an_alert_of_its_own(hub: Monitored, built: Built) -> None:
    await live(hub, built, 6, calm("edge-a") | {"edge-c": rows(shift=1.5, number=5000)})
    await live(hub, built, 32, calm("edge-a", "edge-c"))
    await live(hub, built, 6, calm("edge-a") | {"edge-c": rows(shift=1.5, number=5000)})
    assert [alert.state for alert in await hub.alerts.list() if alert.kind == "drift"] == ["open", "resolved"]


async def test_an_open_look_is_weighed_early_but_not_more_often_than_is_paid_for(hub: Monitored, built: Built) -> None:
    assert isinstance(hub.clock, SetClock)
    await live(hub, built, 3, calm("edge-a"))
    await hub.send("edge-a", make_window(built, rows(), hub.clock()))
    await hub.alerts.run_due()
    await hub.send("edge-a", make_window(built, rows(shift=6.0), hub.clock()))
    pause = await hub.alerts.run_due()
    assert await open_alerts(hub) == []
    assert 0 < pause <= LOOK_S / 8
    hub.clock.advance(pause)
    await hub.alerts.run_due()
    assert [alert.scope for alert in await open_alerts(hub, "drift")] == ["device:edge-a"]


async def test_missing_values_are_a_quality_alert_and_no_drift(hub: Monitored, built: Built) -> None:
    await live(hub, built, 4, calm() | {"edge-b": rows(missing=0.5, number=5000)})
    (alert,) = await open_alerts(hub)
    assert (alert.kind, alert.scope) == ("quality", "device:edge-b")
    assert [(rate.name, rate.problem) for rate in alert.evidence.rates] == [("x[2]", "missing")]
    assert alert.evidence.rates[0].rate == pytest.approx(0.5, abs=0.15)


async def test_values_out_of_range_are_a_quality_alert(hub: Monitored, built: Built) -> None:
    await live(hub, built, 4, calm() | {"edge-b": rows(shift=30.0, number=5000)})
    kinds = {alert.kind: alert for alert in await open_alerts(hub)}
    assert ("x[2]", "outside") in [(rate.name, rate.problem) for rate in kinds["quality"].evidence.rates]


async def test_entries_that_cannot_be_used_are_a_quality_alert_until_they_stop(hub: Monitored, built: Built) -> None:
    await hub.send("edge-d", b"\xc1", b"\xc1", make_window(built, rows(), hub.clock()), stream="window")
    await hub.alerts.run_due()
    (alert,) = await open_alerts(hub)
    assert (alert.kind, alert.scope, alert.manifest_sha256) == ("quality", "device:edge-d", "")
    assert [(problem.key, problem.count) for problem in alert.evidence.problems] == [("malformed", 2)]
    await live(hub, built, 5, calm("edge-d"))
    assert await open_alerts(hub) == []


async def test_an_alert_about_a_replaced_version_is_resolved_as_superseded(
    hub: Monitored, built: Built, store: Store, blobs: Blobs
) -> None:
    await live(hub, built, 5, {"edge-a": rows(shift=1.0, number=5000)})
    assert [alert.scope for alert in await open_alerts(hub)] == ["device:edge-a"]
    better = await build_module(store, blobs, rows(shift=1.0, number=4000), version=2)
    await live(hub, better, 6, {"edge-a": rows(shift=1.0, number=5000)})
    assert await open_alerts(hub) == []
    (alert,) = await hub.alerts.list()
    assert alert.evidence.resolution == "superseded"
    (report,) = await hub.reports.drift_of("digits")
    assert (report.version, report.alarm) == (2, False)


async def test_a_device_that_falls_silent_keeps_its_alert(hub: Monitored, built: Built) -> None:
    await live(hub, built, 5, {"edge-a": rows(shift=1.0, number=5000)})
    await live(hub, built, 10, calm("edge-b"))
    assert "device:edge-a" in [alert.scope for alert in await open_alerts(hub)]


async def test_opening_and_resolving_stand_in_the_trail(hub: Monitored, built: Built) -> None:
    await live(hub, built, 5, {"edge-a": rows(shift=1.5, number=5000)})
    await live(hub, built, 8, calm("edge-a"))
    events = [event for event in await hub.events.list(subject="digits") if event.details["alert_kind"] == "drift"]
    assert [event.kind for event in events] == ["alert.resolved", "alert.opened"]


async def test_inside_its_context_alerts_are_opened_without_being_asked(hub: Monitored, built: Built) -> None:
    async def opened() -> bool:
        return bool(await open_alerts(hub))

    async with hub.alerts:
        await hub.send("edge-a", make_window(built, rows(shift=6.0), hub.clock()))
        await until_async(opened, "an alert about edge-a")


async def test_many_devices_are_weighed_with_few_questions_to_the_database(hub: Monitored, built: Built) -> None:
    asked = []
    for count in (4, 24):
        devices = [f"edge-{number}" for number in range(count)]
        await live(hub, built, 3, calm(*devices))
        for device in devices:
            await hub.send(device, make_window(built, rows(), hub.clock()))
        with noted() as statements:
            await hub.alerts.run_due()
        asked.append(len(statements))
    few, many = asked
    assert many == few


async def test_a_build_whose_reference_cannot_be_read_does_not_hold_up_others(
    hub: Monitored, built: Built, store: Store, blobs: Blobs, caplog: pytest.LogCaptureFixture
) -> None:
    other = await build_module(store, blobs, RANDOM.normal(size=(4000, FEATURES)), version=2)
    await blobs.remove(other.manifest_sha256, float("inf"))
    await live(hub, built, 3, calm())
    hub.alerts.touched([Group(other.manifest_sha256, "edge-d"), Group(other.manifest_sha256, "edge-e")])
    await live(hub, built, 3, calm() | {"edge-d": rows(shift=2.0, number=5000)})
    assert {alert.group.device for alert in await open_alerts(hub)} == {"edge-d"}
    assert "could not weigh a group" in caplog.text


async def test_drift_of_what_is_not_known_says_its_name(hub: Monitored, built: Built) -> None:
    with pytest.raises(NotFound, match="no module faces on this hub"):
        await hub.reports.drift_of("faces")
    with pytest.raises(NotFound, match="no module digits version 7"):
        await hub.reports.drift_of("digits", 7)


async def test_drift_before_any_window_is_an_empty_report(hub: Monitored, built: Built) -> None:
    (report,) = await hub.reports.drift_of("digits", 1, "edge-z")
    assert (report.looks, report.rows, report.alarm, report.features) == (0, 0, False, ())


def test_the_scope_of_a_group_names_the_device_or_the_fleet() -> None:
    assert (Group("m", "*").scope, Group("m", "edge-a").scope) == ("fleet", "device:edge-a")


async def _assigned(store: Store, device: str, role: str, mode: str) -> None:
    """As the director has it. The device itself plays no part."""
    values = {"module": "digits", "version": 1, "profile": "edge", "config": {}, "deployment": "r1", "assigned_at": 0.0}
    async with store.write() as connection:
        await connection.execute(insert(assignments).values(device=device, role=role, mode=mode, **values))


async def test_what_a_shadow_does_is_told_apart_and_is_never_critical(
    hub: Monitored, built: Built, store: Store, events: Events
) -> None:
    await _assigned(store, "edge-c", "candidate", "shadow")
    await live(hub, built, 10, calm())
    await live(hub, built, 8, calm() | {"edge-c": rows(shift=4.0, number=5000)})
    (alert,) = [alert for alert in await open_alerts(hub, "drift") if alert.scope == "device:edge-c"]
    assert (alert.evidence.beside, alert.severity) == ("shadow", "warning")
    (opened,) = [event for event in await events.list() if event.details.get("alert") == alert.id][-1:]
    assert opened.details["beside"] == "shadow"


async def test_the_same_build_where_it_serves_is_as_grave_as_ever(hub: Monitored, built: Built, store: Store) -> None:
    await _assigned(store, "edge-a", "candidate", "shadow")
    await _assigned(store, "edge-c", "main", "serve")
    await live(hub, built, 10, calm())
    await live(hub, built, 8, calm() | {"edge-c": rows(shift=4.0, number=5000)})
    (alert,) = [alert for alert in await open_alerts(hub, "drift") if alert.scope == "device:edge-c"]
    assert (alert.evidence.beside, alert.severity) == ("", "critical")
