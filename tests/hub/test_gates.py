"""Rollouts that wait at a gate, on real counts: a candidate that is worse stops, one that is as good goes on."""

import pytest
from sqlalchemy import insert

from cloud_hub.arms.comparisons import Question
from cloud_hub.arms.margins import Margins
from cloud_hub.blobs import Blobs
from cloud_hub.errors import BadRequest, NotFound
from cloud_hub.events import Events
from cloud_hub.rollouts.decide import OpenGroup, Stop, WaitAtGate, decide
from cloud_hub.rollouts.gate import CompareGate, GateState
from cloud_hub.rollouts.plan import Group, Plan
from cloud_hub.rollouts.states import Execution, ExecutionState, Rollout, RolloutState
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import outcomes
from support.clock import SetClock
from support.gated import CANARIES, IDS, GatedFleet
from support.monitoring import LOOK_S
from support.rollouts import counted


@pytest.fixture
async def fleet(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> GatedFleet:
    fleet = GatedFleet(store, blobs, events, clock)
    await fleet.furnish()
    await fleet.count(30, dict.fromkeys(IDS, 1), {1: 0.02})
    return fleet


async def test_a_candidate_that_fails_more_often_stops_at_the_gate(fleet: GatedFleet) -> None:
    rollout = await fleet.canaries(CompareGate())
    assert (await fleet.rollouts.get(rollout)).rollout.gate == GateState(0, fleet.clock())
    await fleet.gates.tick()
    await fleet.count(20, fleet.running(), {1: 0.02, 2: 0.25})
    await fleet.gates.tick()
    stands = (await fleet.rollouts.get(rollout)).rollout
    assert stands.state is RolloutState.FAILED
    assert "gate after group 1" in stands.reason
    assert "errors worse" in stands.reason
    assert [a.version for a in await fleet.desired.of(IDS[-1])] == [1], "nobody else got it"


async def test_one_that_is_as_good_is_let_through_and_the_event_says_so(fleet: GatedFleet, events: Events) -> None:
    rollout = await fleet.canaries(CompareGate(margins=Margins(errors=0.1, refused=0.1)))
    await fleet.count(2, fleet.running(), {1: 0.02, 2: 0.02})
    await fleet.gates.tick()
    assert (await fleet.rollouts.get(rollout)).rollout.group_index == 0, "two looks of four devices prove nothing"
    await fleet.count(40, fleet.running(), {1: 0.02, 2: 0.02})
    await fleet.gates.tick()
    assert (await fleet.rollouts.get(rollout)).rollout.group_index == 1
    words = [event.details["after"] for event in await events.list("rollout.gate")]
    assert words == ["fine", "undecided"]


async def test_without_an_answer_it_ends_at_the_gates_deadline_as_the_plan_says(fleet: GatedFleet) -> None:
    stops = await fleet.canaries(CompareGate(deadline_s=600.0))
    await fleet.gates.tick()
    fleet.clock.advance(601)
    await fleet.gates.tick()
    stands = (await fleet.rollouts.get(stops)).rollout
    assert stands.state is RolloutState.FAILED
    assert "no answer within 600 s" in stands.reason


async def test_an_old_answer_changes_nothing(fleet: GatedFleet) -> None:
    rollout = await fleet.canaries(CompareGate())
    before = await fleet.rollouts.get(rollout)
    await fleet.rollouts.answer_gate(rollout, GateState(7, 0.0, "fine"))
    assert await fleet.rollouts.get(rollout) == before
    await fleet.rollouts.pause(rollout, "ann")
    await fleet.rollouts.answer_gate(rollout, GateState(0, 0.0, "fine"))
    assert (await fleet.rollouts.get(rollout)).rollout.group_index == 0


async def test_labelled_predictions_are_compared_by_their_weights(fleet: GatedFleet) -> None:
    """Version 2 is right as often among all that were labelled, and wrong among those that stand for more."""
    await fleet.count(30, fleet.running(), {1: 0.02, 2: 0.02})
    async with fleet.store.write() as connection:
        for place, device in enumerate(IDS):
            version = 2 if place < CANARIES else 1
            for look in range(30):
                at = fleet.clock() - look * LOOK_S
                for stratum, weight, error in (("base", 100.0, float(version == 2)), ("odd", 1.0, float(version == 1))):
                    await connection.execute(
                        insert(outcomes).values(
                            prediction_id=f"{device}-{look}-{stratum}", device=device, module="digits",
                            manifest_sha256=fleet.builds[version].manifest_sha256, output="label", at=at, day=0,
                            joined_at=at, stratum=stratum, probability=1.0, weight=weight, kind="class", predicted=0.0,
                            truth=error, error=error,
                        )
                    )  # fmt: skip
    found = await fleet.comparisons.ask(Question("digits", 2, 1))
    (quality,) = [difference for difference in found.differences if difference.role == "quality"]
    assert (quality.word, quality.design, found.verdict) == ("worse", "arms", "worse")
    assert quality.difference == pytest.approx(98 / 101 + 1 / 101, abs=0.03)


async def test_a_comparison_asks_for_two_versions_that_are_there(fleet: GatedFleet) -> None:
    with pytest.raises(NotFound, match="no version 9"):
        await fleet.comparisons.ask(Question("digits", 9, 1))
    with pytest.raises(NotFound, match="no version before 1"):
        await fleet.comparisons.ask(Question("digits", 1))
    with pytest.raises(BadRequest, match="two versions"):
        await fleet.comparisons.ask(Question("digits", 2, 2))
    empty = await fleet.comparisons.ask(Question("digits", 2, 1))
    assert (empty.design, empty.verdict) == ("none", "undecided")


async def test_only_the_devices_asked_for_are_compared(fleet: GatedFleet) -> None:
    await fleet.count(5, fleet.running(), {1: 0.02, 2: 0.02})
    found = await fleet.comparisons.ask(Question("digits", 2, 1, devices=frozenset([IDS[0]])))
    assert (found.design, found.candidate_devices, found.generalises, found.controlled) == ("switched", 1, False, False)


def _rollout(gate: CompareGate, state: GateState | None) -> Rollout:
    plan = Plan(groups=(Group(1), Group()), gate=gate)
    return Rollout("r1", "digits", 2, "all", plan, RolloutState.RUNNING, 0.0, group_index=0, started_at=0.0, gate=state)


@pytest.mark.parametrize(
    ("state", "now", "expected"),
    [
        (None, 5.0, WaitAtGate(0)),
        (GateState(0, 0.0), 5.0, None),
        (GateState(0, 0.0, "undecided"), 5.0, None),
        (GateState(0, 0.0, "fine"), 5.0, OpenGroup(1)),
        (GateState(0, 0.0, "worse", "why"), 5.0, Stop("gate-worse", "gate after group 1: why")),
        (GateState(0, 0.0), 11.0, Stop("gate-undecided", "gate after group 1: no answer within 10 s; no data")),
        (GateState(0, 0.0, "fine"), 11.0, OpenGroup(1)),
    ],
)
def test_what_follows_from_the_gate(state: GateState | None, now: float, expected: object) -> None:
    parts = [Execution("cam-1", 0, ExecutionState.VERIFIED), Execution("cam-2", 1)]
    found = decide(_rollout(CompareGate(deadline_s=10.0), state), counted(parts), now)
    assert found == expected
    if isinstance(expected, Stop) and expected.key == "gate-undecided":
        opened = decide(_rollout(CompareGate(deadline_s=10.0, undecided="open"), state), counted(parts), now)
        assert opened == OpenGroup(1)


@pytest.mark.parametrize("fields", [{"alpha": 0.0}, {"alpha": 0.9}, {"deadline_s": 0.0}, {"deadline_s": float("inf")}])
def test_a_gate_that_makes_no_sense_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gate"):
        CompareGate(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"errors": 0.0}, {"slower": 1.0}, {"quality": 2.0}])
def test_margins_that_make_no_sense_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Margins(**fields)
