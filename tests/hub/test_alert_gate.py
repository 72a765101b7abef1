"""Alerts at a rollout's gate: what the hub watches stops a candidate, sends it back, or lets it through."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from sqlalchemy import insert

from cloud_hub.arms.margins import Margins
from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.rollouts.gate import AlertGate, Answer, CompareGate, together
from cloud_hub.rollouts.states import Rollout, RolloutState
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import alerts
from support.clock import SetClock
from support.gated import CANARIES, IDS, GatedFleet

SOAK_S = 600.0


@pytest.fixture
async def fleet(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> GatedFleet:
    fleet = GatedFleet(store, blobs, events, clock)
    await fleet.furnish()
    return fleet


async def waiting(fleet: GatedFleet, gate: CompareGate | None = None, **plan: object) -> str:
    return await fleet.canaries(gate, **{"alert_gate": AlertGate(), "soak_s": SOAK_S} | plan)


async def stands(fleet: GatedFleet, rollout: str) -> Rollout:
    return (await fleet.rollouts.get(rollout)).rollout


async def after_the_soak(fleet: GatedFleet, rollout: str) -> Rollout:
    fleet.clock.advance(SOAK_S + 1)
    await fleet.gates.tick()
    return await stands(fleet, rollout)


async def alert(fleet: GatedFleet, **changes: object) -> None:
    row: Mapping[str, object] = {
        "kind": "drift", "module": "digits", "version": 2, "manifest_sha256": fleet.builds[2].manifest_sha256,
        "scope": "fleet", "state": "open", "severity": "warning", "opened_at": fleet.clock(),
        "updated_at": fleet.clock(), "evidence": {"threshold": 1.0, "since": 0.0},
    }  # fmt: skip
    async with fleet.store.write() as connection:
        await connection.execute(insert(alerts).values(**{**row, **changes}))


async def test_a_real_drift_alert_about_the_candidate_sends_the_canaries_back(fleet: GatedFleet) -> None:
    await fleet.count(4, dict.fromkeys(IDS, 1), {1: 0.0})
    rollout = await waiting(fleet, on_failure="roll_back")
    await fleet.count(4, fleet.running(), {1: 0.0, 2: 0.0}, shift=2.0)
    await fleet.monitored.alerts.run_due()
    await fleet.gates.tick()
    found = await stands(fleet, rollout)
    assert found.state is RolloutState.ROLLING_BACK
    assert "gate after group 1: alerts about version 2: critical" in found.reason
    assert "drift of fleet" in found.reason
    assert [one.version for one in await fleet.desired.of(IDS[-1])] == [1], "nobody else got it"


async def test_without_alerts_the_next_group_opens_once_it_has_soaked_and_not_before(
    fleet: GatedFleet, events: Events
) -> None:
    rollout = await waiting(fleet)
    await fleet.gates.tick()
    before = await stands(fleet, rollout)
    assert before.gate is not None
    assert (before.group_index, before.gate.word) == (0, "waiting")
    assert "soaks until" in before.gate.reason
    assert (await after_the_soak(fleet, rollout)).group_index == 1
    (event,) = await events.list("rollout.gate")
    assert event.details["after"] == "fine"


async def test_an_alert_while_it_soaks_counts_at_once(fleet: GatedFleet) -> None:
    rollout = await waiting(fleet)
    await alert(fleet, kind="performance")
    await fleet.gates.tick()
    found = await stands(fleet, rollout)
    assert found.state is RolloutState.FAILED
    assert "warning performance of fleet (alert 1)" in found.reason


async def test_one_that_asks_for_a_person_pauses_and_goes_on_when_they_let_it_pass(fleet: GatedFleet) -> None:
    rollout = await waiting(fleet, on_failure="pause")
    await alert(fleet)
    await fleet.gates.tick()
    assert (await stands(fleet, rollout)).state is RolloutState.PAUSED
    fleet.clock.advance(SOAK_S + 1)
    await fleet.rollouts.resume(rollout, "ann")
    assert (await stands(fleet, rollout)).group_index == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 1},
        {"module": "other"},
        {"state": "resolved"},
        {"opened_at": 1.0},
        {"kind": "clone-suspected"},
        {"scope": "device:somebody-else"},
    ],
)
async def test_alerts_that_do_not_speak_of_this_rollout_let_it_through(
    fleet: GatedFleet, changes: dict[str, object]
) -> None:
    rollout = await waiting(fleet)
    await alert(fleet, **changes)
    assert (await after_the_soak(fleet, rollout)).group_index == 1


@pytest.mark.parametrize("state", ["acknowledged", "snoozed"])
async def test_an_alert_that_somebody_has_seen_and_not_ended_still_counts(fleet: GatedFleet, state: str) -> None:
    rollout = await waiting(fleet)
    await alert(fleet, state=state, scope=f"device:{IDS[0]}")
    assert (await after_the_soak(fleet, rollout)).state is RolloutState.FAILED


async def test_who_put_an_alert_off_is_named_with_it(fleet: GatedFleet) -> None:
    rollout = await waiting(fleet)
    await alert(fleet, severity="critical")
    await alert(fleet, kind="quality")
    await fleet.monitored.alerts.acknowledge(1, "ann", "I look at it")
    await fleet.monitored.alerts.snooze(2, 3 * SOAK_S, "bob")
    found = await after_the_soak(fleet, rollout)
    assert found.state is RolloutState.FAILED
    assert "critical drift of fleet (alert 1, acknowledged by ann)" in found.reason
    assert "warning quality of fleet (alert 2, snoozed by bob)" in found.reason


@pytest.mark.parametrize("normal", [False, True])
async def test_an_alert_that_somebody_resolved_lets_the_next_group_open_and_is_stated(
    fleet: GatedFleet, events: Events, normal: bool
) -> None:
    rollout = await waiting(fleet)
    await alert(fleet, scope=f"device:{IDS[0]}", severity="critical")
    await alert(fleet, scope="device:somebody-else")
    await fleet.count(2, fleet.running(), {1: 0.0, 2: 0.0})  # which is normal from now on
    await fleet.monitored.alerts.resolve(1, "ann", "the lamp was changed", normal)
    await fleet.monitored.alerts.resolve(2, "ann")
    assert (await after_the_soak(fleet, rollout)).group_index == 1
    (event,) = await events.list("rollout.gate")
    assert event.details["reason"] == (
        f"no live alert about version 2; resolved by hand: critical drift of device:{IDS[0]} (alert 1, resolved by ann)"
    )


async def test_an_alert_that_became_calm_by_itself_is_over_and_not_stated(fleet: GatedFleet, events: Events) -> None:
    rollout = await waiting(fleet)
    calm = {"threshold": 1.0, "since": 0.0, "resolution": "calm"}
    await alert(fleet, state="resolved", evidence=calm)
    assert (await after_the_soak(fleet, rollout)).group_index == 1
    (event,) = await events.list("rollout.gate")
    assert event.details["reason"] == "no alert about version 2"


async def test_what_was_resolved_by_hand_is_stated_beside_what_is_live(fleet: GatedFleet) -> None:
    rollout = await waiting(fleet)
    await alert(fleet)
    await fleet.monitored.alerts.resolve(1, "ann")
    await alert(fleet, kind="performance")
    found = await after_the_soak(fleet, rollout)
    assert found.state is RolloutState.FAILED
    assert "warning performance of fleet (alert 2); resolved by hand: warning drift of fleet" in found.reason


async def test_only_the_kinds_and_severities_that_the_gate_names_count(fleet: GatedFleet) -> None:
    gate = AlertGate(kinds=("quality", "drift"), severity="critical")
    rollout = await waiting(fleet, alert_gate=gate)
    await alert(fleet, kind="quality")
    await alert(fleet, kind="concept", severity="critical")
    assert (await after_the_soak(fleet, rollout)).group_index == 1
    again = await waiting_for_the_last(fleet, rollout)
    await alert(fleet, kind="quality", severity="critical")
    assert (await after_the_soak(fleet, again)).state is RolloutState.FAILED


async def waiting_for_the_last(fleet: GatedFleet, rollout: str) -> str:
    for device in IDS[CANARIES:]:
        await fleet.verified(device, rollout)
    return rollout


async def test_the_last_group_is_watched_too_before_the_rollout_is_finished(fleet: GatedFleet) -> None:
    rollout = await waiting(fleet)
    assert (await after_the_soak(fleet, rollout)).group_index == 1
    await waiting_for_the_last(fleet, rollout)
    assert (await stands(fleet, rollout)).state is RolloutState.RUNNING
    assert (await after_the_soak(fleet, rollout)).state is RolloutState.FINISHED


async def test_both_gates_have_to_say_fine(fleet: GatedFleet) -> None:
    await fleet.count(30, dict.fromkeys(IDS, 1), {1: 0.02})
    both = CompareGate(margins=Margins(errors=0.1, refused=0.1))
    rollout = await waiting(fleet, gate=both)
    found = await after_the_soak(fleet, rollout)
    assert found.gate is not None
    assert (found.group_index, found.gate.word) == (0, "undecided")
    await fleet.count(40, fleet.running(), {1: 0.02, 2: 0.02})
    await fleet.gates.tick()
    found = await stands(fleet, rollout)
    assert found.gate is not None
    assert found.group_index == 1
    assert "no alert about version 2; version 2 against 1" in found.gate.reason
    await waiting_for_the_last(fleet, rollout)
    assert (await after_the_soak(fleet, rollout)).state is RolloutState.FINISHED, "nobody is left to compare with"


async def test_behind_the_last_group_nobody_is_left_to_compare_with_so_it_only_soaks(fleet: GatedFleet) -> None:
    rollout = await waiting(fleet, gate=CompareGate(), alert_gate=None, groups=("rest",))
    await waiting_for_the_last(fleet, rollout)
    assert (await stands(fleet, rollout)).state is RolloutState.RUNNING
    assert (await after_the_soak(fleet, rollout)).state is RolloutState.FINISHED


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "fine"),
        (("fine", "fine"), "fine"),
        (("fine", "undecided"), "undecided"),
        (("waiting", "undecided"), "waiting"),
        (("undecided", "worse", "waiting"), "worse"),
    ],
)
def test_what_several_gates_say_together(words: tuple[str, ...], expected: str) -> None:
    answers = [msgspec.convert({"word": word, "reason": f"because {word}"}, Answer) for word in words]
    found = together(answers)
    assert found.word == expected
    assert f"because {expected}" in found.reason or not words


@pytest.mark.parametrize(
    ("body", "words"),
    [(b'{"kinds": []}', "kinds"), (b'{"kinds": ["rain"]}', "rain"), (b'{"severity": "mild"}', "mild")],
)
def test_an_alert_gate_that_makes_no_sense_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.json.decode(body, type=AlertGate)
