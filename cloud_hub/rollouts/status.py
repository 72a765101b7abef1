"""How a rollout stands, in the form that the API gives and the command line shows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from cloud_hub.rollouts.plan import NOT_ELIGIBLE, Execution, ExecutionState, Rollout


class GroupStatus(msgspec.Struct, frozen=True):
    """One group: its devices by state. States that nobody is in are left out. `open` once its devices are assigned."""

    index: int
    size: int
    open: bool
    states: dict[ExecutionState, int]

    def share(self, state: ExecutionState) -> float:
        """Percent of the group in `state`."""
        return 100 * self.states.get(state, 0) / max(1, self.size)


class RolloutStatus(msgspec.Struct, frozen=True):
    """A rollout with its groups and executions. Those with group_index -1 are devices that the module does not fit."""

    rollout: Rollout
    groups: tuple[GroupStatus, ...]
    executions: tuple[Execution, ...]

    @property
    def not_eligible(self) -> tuple[Execution, ...]:
        return tuple(e for e in self.executions if e.group_index == NOT_ELIGIBLE)


def status(rollout: Rollout, executions: Sequence[Execution]) -> RolloutStatus:
    """Counts the executions by group."""
    indices = sorted({e.group_index for e in executions} - {NOT_ELIGIBLE})
    groups = [_group(rollout, index, [e for e in executions if e.group_index == index]) for index in indices]
    return RolloutStatus(rollout, tuple(groups), tuple(executions))


def _group(rollout: Rollout, index: int, members: Sequence[Execution]) -> GroupStatus:
    states = Counter(member.state for member in members)
    return GroupStatus(index, len(members), index <= rollout.group_index, dict(states))
