"""How a rollout, its pace and a dry run are shown to people."""

from __future__ import annotations

import msgspec
import pytest
from rich.console import Console, RenderableType

from cloud_hub.operator import render_preview, render_rollout
from cloud_hub.operator.cli.rollout_watch import all_back
from cloud_hub.operator.pace import Pace, Progress
from cloud_hub.operator.render import span
from cloud_hub.rollouts.durations import Durations
from cloud_hub.rollouts.plan import Group, Plan
from cloud_hub.rollouts.preview import GroupPreview, LeftOut, Preview
from cloud_hub.rollouts.states import Execution, ExecutionState, Rollout, RolloutState
from cloud_hub.rollouts.status import GroupStatus, RolloutStatus, status
from cloud_hub.rollouts.transfers import Transfer
from cloud_hub.rollouts.waits import Wait
from support.rollouts import counted

VERIFIED, FAILED = ExecutionState.VERIFIED, ExecutionState.FAILED


def text(shown: RenderableType) -> str:
    console = Console(width=160, record=True, highlight=False, file=None, force_terminal=False, quiet=False)
    with console.capture() as capture:
        console.print(shown)
    return capture.get()


def standing(done: int, of: int, *waits: Wait) -> RolloutStatus:
    rollout = Rollout("r1", "digits", 2, "all", Plan(groups=(Group(),)), RolloutState.RUNNING, 0.0, group_index=0)
    group = GroupStatus(0, of, open=True, states={VERIFIED: done, ExecutionState.WAITING: of - done})
    return RolloutStatus(rollout, (group,), (), waits)


def test_what_it_waits_for_is_said_with_the_time_that_is_left() -> None:
    waiting = standing(
        0, 5, Wait("soak", "group 1 soaks until then", 7300.0), Wait("approval", "group 2 waits for ann")
    )
    shown = text(render_rollout.rollout(waiting, now=100.0))
    assert "waiting: group 1 soaks until then (in 2 h)" in shown
    assert "waiting: group 2 waits for ann\n" in shown


def test_a_fleet_rollback_that_is_watched_went_well_once_all_are_back_and_nobody_is_stuck() -> None:
    def gone_back(state: RolloutState, **states: int) -> bool:
        there = standing(0, 2)
        group = GroupStatus(0, 2, open=True, states={ExecutionState(name): count for name, count in states.items()})
        return all_back(
            msgspec.structs.replace(there, rollout=msgspec.structs.replace(there.rollout, state=state), groups=(group,))
        )

    assert gone_back(RolloutState.ROLLED_BACK, returned=2)
    assert not gone_back(RolloutState.ROLLED_BACK, returned=1, stuck=1)
    assert not gone_back(RolloutState.ROLLING_BACK, returned=2)


def test_the_pace_is_that_of_the_last_minutes_and_says_how_long_the_rest_takes() -> None:
    pace = Pace()
    assert pace.progress() is None
    for second in range(0, 1200, 10):
        pace.note(standing(min(second, 600) // 10 + max(0, second - 600) // 5, 1000), float(second))
    found = pace.progress()
    assert found is not None
    assert found.per_minute == pytest.approx(12)
    assert found.left_s == pytest.approx((1000 - found.done) * 5)
    shown = text(render_rollout.rollout(standing(10, 1000), found))
    assert f"{found.done} of 1000 devices done, 12 a minute, about" in shown


def test_a_pace_is_not_made_of_one_moment_nor_of_devices_that_begin_again() -> None:
    pace = Pace()
    pace.note(standing(3, 10), 0.0)
    pace.note(standing(5, 10), 1.0)
    assert pace.progress() == Progress(5, 10)
    pace.note(standing(8, 10), 20.0)
    pace.note(standing(2, 10), 30.0)
    assert pace.progress() == Progress(2, 10)


def test_of_many_devices_that_need_attention_it_says_how_many_more_and_where() -> None:
    parts = [Execution(f"cam-{n:03}", 0, FAILED) for n in range(300)]
    rollout = standing(0, 1).rollout
    shown = text(render_rollout.rollout(status(rollout, counted(parts), parts[:200])))
    assert "and 280 more; see `mooring rollout devices r1`" in shown


def test_devices_that_take_no_part_are_named_after_those_that_failed() -> None:
    none = [Execution(f"a-{n:03}", -1, ExecutionState.REJECTED) for n in range(30)]
    shown = text(render_rollout.rollout(status(standing(0, 1).rollout, {}, [*none, Execution("z-1", 0, FAILED)])))
    assert shown.index("z-1") < shown.index("a-000")


def test_devices_that_go_back_have_their_part_of_the_bar() -> None:
    states = {ExecutionState.RETURNED: 1, ExecutionState.RETURNING: 1, ExecutionState.STUCK: 1, FAILED: 1}
    group = GroupStatus(0, 4, open=True, states=states)
    shown = text(render_rollout.rollout(RolloutStatus(standing(0, 1).rollout, (group,), ())))
    assert "1 failed, 1 returned, 1 returning, 1 stuck" in shown


def test_devices_of_a_rollout_show_attempt_time_and_reason_as_they_were_written() -> None:
    part = Execution("cam-1", 1, FAILED, reason_key="load-failed", reason="[bold]x[/]", started_at=5.0,
                     finished_at=149.0, attempt=1)  # fmt: skip
    none = Execution("pi-1", -1, ExecutionState.REJECTED, reason_key="no-module-for-profile")
    shown = text(render_rollout.executions([part, none]))
    assert "load-failed: [bold]x[/]" in shown
    assert "2 min 24 s" in shown
    assert "none" in shown


def test_a_configuration_is_named_as_one() -> None:
    rollout = msgspec.structs.replace(standing(0, 1).rollout, version=0, config=3)
    assert render_rollout.named(rollout) == "digits configuration 3"


def test_a_dry_run_shows_everything_with_its_source() -> None:
    found = Preview(
        "digits", 2, "site=[red]lab[/red]", 1200, 1_200_000,
        (GroupPreview(0, 1200, ("a", "b", "c", "d"), 1_200_000, "group 1 waits for ann", 0.0, 60.0, 120.0),),
        (LeftOut("module-not-signed", "it is not signed", 2, ("x", "y")),),
        (Transfer("edge", 0, 1000, 1000, 1000), Transfer("edge", 1, 200, 1000, 5000, by_patch=True)),
        Durations(90.0, 130.0, 40, "earlier rollouts of digits"), 120.0, 0, ("look here",),
    )  # fmt: skip
    shown = text(render_preview.preview(found))
    for words in (
        "dry run digits:2 to site=[red]lab[/red]: 1200 devices, 1.1 MiB in all", "a, b, c, ...",
        "group 1 waits for ann",
        "1000 B with patches", "nothing", "module-not-signed", "x, y", "note: look here",
        "40 executions of earlier rollouts of digits: 1 min 30 s as a rule, 2 min 10 s for 9 of 10",
    ):  # fmt: skip
        assert words in shown
    least = msgspec.structs.replace(found, durations=Durations(60.0, 60.0, 0, "nothing measured yet"), ends_at=None)
    assert "times are the least: nothing measured yet (1 min)" in text(render_preview.preview(least))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"), (59.6, "1 min"), (61, "1 min 1 s"), (600, "10 min"), (3599, "1 h"), (7800, "2 h 10 min"),
        (172_800, "2 d"), (176_400, "2 d 1 h"),
    ],
)  # fmt: skip
def test_lengths_of_time_are_short(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_states_are_shown_as_words() -> None:
    timed_out = Execution("cam-1", 0, ExecutionState.TIMED_OUT, reason_key="deadline")
    there = standing(0, 1)
    groups = (GroupStatus(0, 1, open=True, states={ExecutionState.TIMED_OUT: 1}),)
    back = msgspec.structs.replace(there.rollout, state=RolloutState.ROLLED_BACK)
    shown = text(render_rollout.rollout(RolloutStatus(back, groups, (timed_out,))))
    shown += text(render_rollout.rollouts([back])) + text(render_rollout.executions([timed_out]))
    assert shown.count("timed out") == 3
    assert shown.count("rolled back") == 2
    assert "_" not in shown
