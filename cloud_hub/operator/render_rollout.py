"""How a rollout stands, for a terminal: a bar per group, and who needs attention. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.operator.render import table, when
from cloud_hub.rollouts.states import FAILURES, IN_PROGRESS, Execution, ExecutionState, Rollout, RolloutState
from cloud_hub.rollouts.status import GroupStatus, RolloutStatus

BAR_CHARS = 30
MAX_SHOWN = 20
_STATE_STYLE = {
    RolloutState.FINISHED: "bold green",
    RolloutState.FAILED: "bold red",
    RolloutState.ABORTED: "bold red",
    RolloutState.PAUSED: "bold yellow",
}


def rollouts(found: Sequence[Rollout]) -> RenderableType:
    rows = [
        (r.id, f"{r.module}:{r.version}", r.target, str(r.state), when(r.started_at), when(r.finished_at), r.reason)
        for r in found
    ]
    return table(("rollout", "module", "target", "state", "started", "ended", "reason"), rows, "no rollouts")


def rollout(status: RolloutStatus) -> RenderableType:
    """Headline, groups, and the devices that are at work or did not succeed."""
    return Group(_headline(status.rollout), _groups(status), *_gate(status.rollout), *_attention(status))


def _headline(rollout: Rollout) -> Text:
    line = Text.assemble(
        (f"{rollout.id} ", "bold"),
        f"{rollout.module}:{rollout.version} to {rollout.target}: ",
        (str(rollout.state), _STATE_STYLE.get(rollout.state, "bold cyan")),
    )
    return line.append(f" ({rollout.reason})") if rollout.reason else line


def _gate(rollout: Rollout) -> list[RenderableType]:
    """Where it waits, or how its latest gate was passed."""
    state = rollout.gate
    if state is None:
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
    failed = sum(group.states.get(state, 0) for state in FAILURES)
    busy = sum(group.states.get(state, 0) for state in IN_PROGRESS)
    parts = [(group.states.get(ExecutionState.VERIFIED, 0), "green"), (failed, "red"), (busy, "yellow")]
    bar, used, count = Text(), 0, 0
    for number, style in parts:
        count += number
        upto = round(BAR_CHARS * count / max(1, group.size))
        bar.append("━" * (upto - used), style)
        used = upto
    return bar.append("━" * (BAR_CHARS - used), "bright_black")


def _others(group: GroupStatus) -> str:
    others = {state: count for state, count in group.states.items() if state is not ExecutionState.VERIFIED}
    return ", ".join(f"{count} {state}" for state, count in sorted(others.items()))


def _attention(status: RolloutStatus) -> list[RenderableType]:
    shown = [e for e in status.executions if e.state in IN_PROGRESS or e.state in FAILURES]
    if not shown:
        return []
    more = f"and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
    rows = [(e.device, str(e.state), _why(e)) for e in shown[:MAX_SHOWN]]
    return [Text(""), table(("device", "state", "reason"), rows, ""), Text(more, style="dim")]


def _why(execution: Execution) -> str:
    return f"{execution.reason_key}: {execution.reason}" if execution.reason else execution.reason_key
