"""How a rollout stands, for a terminal: a bar per group, and who needs attention. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.operator.pace import Progress
from cloud_hub.operator.render import span, table, when
from cloud_hub.rollouts.states import (
    BUSY,
    FAILURES,
    NOT_ELIGIBLE,
    Execution,
    ExecutionState,
    Rollout,
    RolloutState,
)
from cloud_hub.rollouts.status import GroupStatus, RolloutStatus
from cloud_hub.rollouts.waits import Wait
from cloud_hub.words import spoken

BAR_CHARS = 30
MAX_SHOWN = 20
_STATE_STYLE = {
    RolloutState.FINISHED: "bold green",
    RolloutState.FAILED: "bold red",
    RolloutState.ABORTED: "bold red",
    RolloutState.ROLLED_BACK: "bold red",
    RolloutState.ROLLING_BACK: "bold yellow",
    RolloutState.PAUSED: "bold yellow",
}


def rollouts(found: Sequence[Rollout]) -> RenderableType:
    rows = [
        (r.id, named(r), r.target, spoken(r.state), when(r.started_at), when(r.finished_at), r.reason) for r in found
    ]
    return table(("rollout", "module", "target", "state", "started", "ended", "reason"), rows, "no rollouts")


def rollout(status: RolloutStatus, progress: Progress | None = None, now: float = 0.0) -> RenderableType:
    """Headline, groups, what it waits for, and the devices that are at work or did not succeed.

    With `progress` how fast it comes along, and with `now` (epoch seconds) how long waiting takes.
    """
    return Group(
        _headline(status.rollout),
        _groups(status),
        *_gate(status.rollout),
        *_waits(status.waits, now),
        *_progress(progress),
        *_attention(status),
    )


def executions(found: Sequence[Execution]) -> RenderableType:
    rows = [
        (e.device, _place(e), spoken(e.state), str(e.attempt + 1), when(e.started_at), _took(e), _why(e)) for e in found
    ]
    headers = ("device", "group", "state", "attempt", "begun", "took", "reason")
    return table(headers, rows, "no devices")


def named(rollout: Rollout) -> str:
    """What it brings: a version, a revision of the configuration, or both."""
    version = f"{rollout.module}:{rollout.version}" if rollout.version else rollout.module
    return f"{version} configuration {rollout.config}" if rollout.config else version


def _place(execution: Execution) -> str:
    return "none" if execution.group_index == NOT_ELIGIBLE else str(execution.group_index + 1)


def _took(execution: Execution) -> str:
    begun, ended = execution.started_at, execution.finished_at
    return "" if begun is None or ended is None or ended < begun else span(ended - begun)


def _headline(rollout: Rollout) -> Text:
    line = Text.assemble(
        (f"{rollout.id} ", "bold"),
        f"{named(rollout)} to {rollout.target}: ",
        (spoken(rollout.state), _STATE_STYLE.get(rollout.state, "bold cyan")),
    )
    return line.append(f" ({rollout.reason})") if rollout.reason else line


def _waits(found: Sequence[Wait], now: float) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for wait in found:
        left = f" (in {span(wait.until - now)})" if wait.until is not None and 0 < now < wait.until else ""
        lines.append(Text("waiting: ", "bold yellow").append(f"{wait.text}{left}", "default"))
    return lines


def _progress(progress: Progress | None) -> list[RenderableType]:
    if progress is None:
        return []
    line = f"{progress.done} of {progress.of} devices done"
    if progress.per_minute is not None and progress.left_s is not None:
        line += f", {progress.per_minute:.3g} a minute"
        line += f", about {span(progress.left_s)} left at this pace" if progress.done < progress.of else ""
    return [Text(line, style="dim")]


def _gate(rollout: Rollout) -> list[RenderableType]:
    """Where it waits, or how its latest gate was passed."""
    state = rollout.gate
    if state is None or not rollout.plan.gated:  # soaking is said below
        return []
    waits = rollout.state is RolloutState.RUNNING and state.group == rollout.group_index and state.word != "fine"
    line = Text(f"gate after group {state.group + 1}: ").append(state.word, "bold yellow" if waits else "bold")
    return [line.append(f" ({state.reason})") if state.reason else line]


def _groups(status: RolloutStatus) -> Table:
    made = Table(box=None, pad_edge=False, show_header=False)
    plan = status.rollout.plan
    for group in status.groups:
        wanted = str(plan.groups[group.index]) if group.index < len(plan.groups) else "rest"
        verified = group.states.get(ExecutionState.VERIFIED, 0)
        made.add_row(
            f"group {group.index + 1}", f"({wanted})", _bar(group), f"{verified}/{group.size} verified", _others(group)
        )
    return made


def _bar(group: GroupStatus) -> Text:
    """One character or more per state, verified first; the parts add up to the bar."""
    parts = [
        ({ExecutionState.VERIFIED}, "green"),
        ({ExecutionState.RETURNED}, "blue"),
        ({*FAILURES, ExecutionState.STUCK}, "red"),
        ({*BUSY}, "yellow"),
    ]
    bar, used, count = Text(), 0, 0
    for states, style in parts:
        count += sum(group.states.get(state, 0) for state in states)
        upto = round(BAR_CHARS * count / max(1, group.size))
        bar.append("━" * (upto - used), style)
        used = upto
    return bar.append("━" * (BAR_CHARS - used), "bright_black")


def _others(group: GroupStatus) -> str:
    others = {state: count for state, count in group.states.items() if state is not ExecutionState.VERIFIED}
    return ", ".join(f"{count} {spoken(state)}" for state, count in sorted(others.items()))


def _attention(status: RolloutStatus) -> list[RenderableType]:
    wanted = {*BUSY, *FAILURES, ExecutionState.STUCK}
    of_interest = [e for e in status.executions if e.state in wanted]
    shown = sorted(of_interest, key=lambda e: e.group_index == NOT_ELIGIBLE)  # who takes no part comes last
    if not shown:
        return []
    # The status holds some hundred executions; how many there are stands in the groups.
    total = sum(group.states.get(state, 0) for group in status.groups for state in wanted)
    left = max(total, len(shown)) - MAX_SHOWN
    more = f"and {left} more; see `mooring rollout devices {status.rollout.id}`" if left > 0 else ""
    rows = [(e.device, spoken(e.state), _why(e)) for e in shown[:MAX_SHOWN]]
    return [Text(""), table(("device", "state", "reason"), rows, ""), Text(more, style="dim")]


def _why(execution: Execution) -> str:
    return f"{execution.reason_key}: {execution.reason}" if execution.reason else execution.reason_key
