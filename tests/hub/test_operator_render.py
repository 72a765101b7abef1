"""What a terminal shows: bars that add up, alarms that stand out, and no markup from what others wrote."""

import msgspec
import pytest
from rich.console import Console, RenderableType

from cloud_hub.monitoring.reports import DriftReport
from cloud_hub.monitoring.verdict import FeatureEvidence, RateEvidence
from cloud_hub.operator import render, render_drift, render_rollout
from cloud_hub.operator.render_rollout import BAR_CHARS
from cloud_hub.rollouts.gate import CompareGate, GateState
from cloud_hub.rollouts.plan import Group, Plan
from cloud_hub.rollouts.states import Execution, ExecutionState, Rollout, RolloutState
from cloud_hub.rollouts.status import RolloutStatus, status
from support.rollouts import counted


def text(renderable: RenderableType) -> str:
    plain = Console(width=160, force_terminal=False)
    with plain.capture() as captured:
        plain.print(renderable)
    return captured.get()


def feature(name: str, psi: float, log_bf: float, alarm: bool) -> FeatureEvidence:
    return FeatureEvidence(
        index=0,
        name=name,
        role="input",
        log_bf=log_bf,
        threshold=21.5,
        alarm=alarm,
        looks=3,
        rows=900,
        psi=psi,
        js=0.1,
        ks=None,
        mean_shift=1.25,
        cells=("a", "b"),
        reference=(10, 10),
        current=(18, 2),
    )


def report(*features: FeatureEvidence) -> DriftReport:
    alarm = any(one.alarm for one in features)
    rate = RateEvidence("pixel_3", "missing", 30.0, 21.5, alarm, 3, 900, 0.2, 0.01)
    return DriftReport("digits", 2, "a" * 64, "cam-001", 3, 900, 1.7e9, 1.7e9 + 30, 21.5, alarm, features, (rate,))


def test_the_feature_that_alarms_comes_first_with_its_evidence_and_threshold() -> None:
    shown = text(render_drift.drift([report(feature("calm", 0.01, 2.0, False), feature("covered", 0.4, 80.0, True))]))
    assert "digits:2 on cam-001: ALARM" in shown
    assert shown.index("covered (input)") < shown.index("calm (input)")
    [line] = [line for line in shown.splitlines() if line.startswith("covered")]
    assert all(word in line for word in ("0.400", "80.0", "21.5", "+1.25 σ", "900"))
    assert "20.00%" in shown


@pytest.mark.parametrize(("psi", "filled"), [(0.0, 0), (-0.01, 0), (0.25, 12), (0.5, 24), (7.0, 24)])
def test_the_bar_is_as_long_as_the_effect_and_never_longer_than_its_place(psi: float, filled: int) -> None:
    shown = text(render_drift.drift([report(feature("one", psi, 1.0, False))]))
    assert shown.count("█") == filled
    assert shown.count("·") == render_drift.BAR_CHARS - filled


def test_weaker_features_are_counted_and_shown_on_request() -> None:
    many = report(*(feature(f"pixel_{number:02}", 0.0, number, False) for number in range(64)))
    assert "44 weaker features not shown" in text(render_drift.drift([many]))
    assert "pixel_00" in text(render_drift.drift([many], everything=True))


def standing(*states: ExecutionState) -> tuple[Rollout, list[Execution]]:
    plan = Plan(groups=(Group(count=1),))
    rollout = Rollout("r1", "digits", 2, "site=[red]lab[/red]", plan, RolloutState.RUNNING, 0.0, group_index=0)
    first = Execution("cam-000", 0, ExecutionState.VERIFIED)
    return rollout, [first, *(Execution(f"cam-{n:03}", 1, state) for n, state in enumerate(states, 1))]


def standing_status(rollout: Rollout, parts: list[Execution]) -> RolloutStatus:
    return status(rollout, counted(parts), parts)


def test_a_group_shows_its_bar_its_count_and_what_became_of_the_others() -> None:
    states = [ExecutionState.VERIFIED, ExecutionState.FAILED, ExecutionState.UPDATING, ExecutionState.WAITING]
    shown = text(render_rollout.rollout(standing_status(*standing(*states))))
    assert shown.count("━") == 2 * BAR_CHARS
    assert "group 1  (1)" in shown
    assert "group 2  (rest)" in shown
    assert "1/4 verified  1 failed, 1 updating, 1 waiting" in shown


def test_what_others_wrote_is_shown_as_it_is() -> None:
    rollout, parts = standing(ExecutionState.FAILED)
    parts[1] = msgspec.structs.replace(parts[1], reason_key="load-failed", reason="[bold]x[/bold] [/nonsense]")
    shown = text(render_rollout.rollout(standing_status(rollout, parts)))
    assert "site=[red]lab[/red]" in shown
    assert "[bold]x[/bold] [/nonsense]" in shown


def test_a_rollout_that_waits_at_its_gate_says_for_what() -> None:
    rollout, parts = standing(ExecutionState.WAITING)
    waiting = msgspec.structs.replace(
        rollout,
        gate=GateState(0, 0.0, "undecided", "errors is not yet known"),
        plan=msgspec.structs.replace(rollout.plan, gate=CompareGate()),
    )
    shown = text(render_rollout.rollout(standing_status(waiting, parts)))
    assert "gate after group 1: undecided (errors is not yet known)" in shown


def test_a_rollout_that_only_soaks_shows_no_gate() -> None:
    rollout, parts = standing(ExecutionState.WAITING)
    soaking = msgspec.structs.replace(
        rollout, gate=GateState(0, 0.0), plan=msgspec.structs.replace(rollout.plan, soak_s=3.0)
    )
    assert "gate after" not in text(render_rollout.rollout(standing_status(soaking, parts)))


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (2**40, "1024.0 GiB")]
)
def test_sizes_are_short(count: int, words: str) -> None:
    assert render.size(count) == words
