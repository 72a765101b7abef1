"""An alert is seen to, put off, ended and opened again, and everybody can read by whom and why."""

import numpy as np
import pytest

from cloud_hub.blobs import Blobs
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.monitoring.alert_book import Alert, AlertEvidence, Fact
from cloud_hub.monitoring.looks import Group
from cloud_hub.store.engine import Store
from support.clock import SetClock
from support.monitoring import LOOK_S, Monitored, build_module
from support.watched import Fleet

DAY_S = 86_400.0
GROUP = Group("a" * 64, "cam-1")
RANDOM = np.random.default_rng(43)


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Monitored:
    return Monitored(store, blobs, events, clock)


@pytest.fixture
async def fleet(hub: Monitored) -> Fleet:
    built = await build_module(hub.store, hub.blobs, RANDOM.normal(size=(4000, 2)))
    return Fleet(hub, built, ("cam-1", "cam-2", "cam-3"), 2)


def worse(accuracy: float) -> AlertEvidence:
    fact = Fact("accuracy", accuracy, 0.95, f"accuracy {accuracy:.2f}, 0.95 before")
    return AlertEvidence(threshold=0.0, since=1_700_000_000.0, facts=(fact,))


async def raised(hub: Monitored, accuracy: float = 0.8) -> int:
    return await hub.alerts.raise_alert("performance", "digits", GROUP, worse(accuracy), version=2)


async def state(hub: Monitored, number: int) -> Alert:
    return (await hub.alerts.detail(number)).alert


async def changes(hub: Monitored, number: int) -> list[tuple[str, str, str]]:
    return [(one.change, one.actor, one.comment) for one in (await hub.alerts.detail(number)).history]


async def test_what_others_raise_is_one_alert_that_says_what_it_says_now(hub: Monitored) -> None:
    number = await raised(hub)
    assert await raised(hub, 0.7) == number
    alert = await state(hub, number)
    assert (alert.kind, alert.module, alert.version, alert.scope) == ("performance", "digits", 2, "device:cam-1")
    assert (alert.evidence.names, alert.evidence.facts[0].value) == (("accuracy",), 0.7)
    assert await hub.alerts.calm("performance", GROUP, reason="as good as before again")
    assert not await hub.alerts.calm("performance", GROUP)
    assert (await state(hub, number)).evidence.resolution == "calm"


async def test_every_step_is_in_the_history_and_in_the_audit_trail_with_who_and_why(hub: Monitored) -> None:
    number = await raised(hub)
    await hub.alerts.acknowledge(number, "ann", "I look at it")
    await hub.alerts.snooze(number, DAY_S, "bob", "the crew comes tomorrow")
    await hub.alerts.resolve(number, "ann", "lens cleaned")
    steps = [
        ("opened", "hub", ""),
        ("acknowledged", "ann", "I look at it"),
        ("snoozed", "bob", "the crew comes tomorrow"),
        ("resolved", "ann", "lens cleaned"),
    ]
    assert await changes(hub, number) == steps
    events = [event for event in await hub.events.list(subject="digits") if event.kind.startswith("alert.")]
    told = [(event.kind, event.actor, event.details["comment"]) for event in reversed(events)]
    assert told == [(f"alert.{change}", actor, comment) for change, actor, comment in steps]
    first = events[-1].details
    assert (first["alert"], first["scope"], first["names"], first["devices"]) == (
        number, "device:cam-1", ["accuracy"], ["cam-1"],
    )  # fmt: skip
    assert events[0].details["resolution"] == "by-hand"


async def test_a_snoozed_alert_wakes_when_its_time_is_over(hub: Monitored, clock: SetClock) -> None:
    number = await raised(hub)
    await hub.alerts.snooze(number, 3600.0, "bob")
    clock.advance(3599.0)
    await hub.alerts.run_due()
    assert (await state(hub, number)).state == "snoozed"
    clock.advance(2.0)
    await hub.alerts.run_due()
    assert (await state(hub, number)).state == "open"
    assert (await changes(hub, number))[-1] == ("reopened", "hub", "its snooze is over")


async def test_a_snoozed_alert_that_has_become_calm_does_not_wake(hub: Monitored, clock: SetClock) -> None:
    number = await raised(hub)
    await hub.alerts.snooze(number, 3600.0, "bob")
    await hub.alerts.calm("performance", GROUP)
    clock.advance(7200.0)
    await hub.alerts.run_due()
    assert (await state(hub, number)).state == "resolved"


async def test_who_took_an_alert_over_is_asked_again_when_it_becomes_critical(hub: Monitored) -> None:
    number = await raised(hub)
    await hub.alerts.acknowledge(number, "ann")
    await raised(hub, 0.75)
    assert (await state(hub, number)).state == "acknowledged"
    await hub.alerts.raise_alert("performance", "digits", GROUP, worse(0.2), severity="critical")
    alert = await state(hub, number)
    assert (alert.state, alert.severity) == ("open", "critical")
    assert (await changes(hub, number))[-1] == ("reopened", "hub", "it has become critical")


async def test_one_that_comes_back_soon_is_the_same_alert_and_later_a_new_one(hub: Monitored, clock: SetClock) -> None:
    number = await raised(hub)
    await hub.alerts.calm("performance", GROUP)
    clock.advance(LOOK_S)
    assert await raised(hub) == number
    await hub.alerts.calm("performance", GROUP)
    clock.advance(30 * LOOK_S)
    assert await raised(hub) != number


@pytest.mark.parametrize("step", ["acknowledge", "snooze", "resolve"])
async def test_a_resolved_alert_is_not_changed_any_more(hub: Monitored, step: str) -> None:
    number = await raised(hub)
    await hub.alerts.calm("performance", GROUP)
    before = await hub.alerts.detail(number)
    with pytest.raises(Conflict, match=r"is resolved.*nothing was changed"):
        await _step(hub, step, number)
    assert await hub.alerts.detail(number) == before


@pytest.mark.parametrize("step", ["acknowledge", "snooze", "resolve"])
async def test_an_alert_that_is_not_there_is_not_found(hub: Monitored, step: str) -> None:
    with pytest.raises(NotFound, match="no alert 77"):
        await _step(hub, step, 77)


@pytest.mark.parametrize("for_s", [0.0, -1.0, float("nan"), 93 * DAY_S])
async def test_a_snooze_has_an_end_that_can_be_seen(hub: Monitored, for_s: float) -> None:
    number = await raised(hub)
    with pytest.raises(BadRequest, match="up to 92 days"):
        await hub.alerts.snooze(number, for_s, "bob")
    assert (await state(hub, number)).state == "open"


async def _step(hub: Monitored, step: str, number: int) -> None:
    if step == "acknowledge":
        await hub.alerts.acknowledge(number, "ann")
    elif step == "snooze":
        await hub.alerts.snooze(number, 60.0, "ann")
    else:
        await hub.alerts.resolve(number, "ann")


async def test_drift_that_was_ended_by_hand_is_not_opened_by_what_was_counted_before(fleet: Fleet) -> None:
    await fleet.live(3)
    await fleet.live(3, {"cam-1": lambda: fleet.rows(1.2)})
    (alert,) = await fleet.open()
    await fleet.hub.alerts.resolve(alert.id, "ann", "cleaned")
    await fleet.live(3)
    assert await fleet.open() == []


async def test_drift_that_goes_on_after_it_was_ended_by_hand_opens_the_alert_again(fleet: Fleet) -> None:
    await fleet.live(3)
    await fleet.live(3, {"cam-1": lambda: fleet.rows(1.2)})
    (alert,) = await fleet.open()
    await fleet.hub.alerts.resolve(alert.id, "ann", "cleaned")
    await fleet.live(4, {"cam-1": lambda: fleet.rows(1.2)})
    assert [again.id for again in await fleet.open()] == [alert.id]
    assert [change for change, _, _ in await changes(fleet.hub, alert.id)] == ["opened", "resolved", "reopened"]


async def test_what_is_the_new_normal_is_quiet_and_what_was_normal_before_is_not(fleet: Fleet) -> None:
    await fleet.live(3)
    await fleet.live(6, {"cam-1": lambda: fleet.rows(1.2)})
    (alert,) = await fleet.open()
    await fleet.hub.alerts.resolve(alert.id, "ann", "the camera was moved", normal=True)
    (watch,) = await fleet.hub.alerts.watches.all("digits")
    assert (watch.scope, watch.reference.kind, watch.author) == ("device:cam-1", "period", "ann")
    await fleet.live(6, {"cam-1": lambda: fleet.rows(1.2)})
    assert await fleet.open() == []
    await fleet.live(6)
    (back,) = await fleet.open()
    assert back.scope == "device:cam-1"
    assert back.evidence.reference.startswith("period:")


async def test_bad_data_without_counts_cannot_become_the_new_normal(hub: Monitored) -> None:
    number = await hub.alerts.raise_alert("quality", "digits", GROUP, worse(0.8))
    with pytest.raises(NotFound, match="no module digits"):
        await hub.alerts.resolve(number, "ann", normal=True)
    assert (await state(hub, number)).state == "open"


async def test_answers_that_got_worse_are_accepted_without_a_reference_of_counts(hub: Monitored) -> None:
    number = await raised(hub)
    await hub.alerts.resolve(number, "ann", "the task is harder now", normal=True)
    assert (await state(hub, number)).evidence.resolution == "normal"
    assert await hub.alerts.watches.all() == []
