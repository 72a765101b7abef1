"""How a rollout stands, in the form that the API gives and the command line shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cloud_hub.rollouts.decide import Counts
from cloud_hub.rollouts.states import NOT_ELIGIBLE, Execution, ExecutionState, Rollout
from cloud_hub.rollouts.waits import Wait

MAX_SHOWN = 200


class GroupStatus(msgspec.Struct, frozen=True):
    """One group: its devices by state. States that nobody is in are left out. `open` once its devices may begin."""

    index: int
    size: int
    open: bool
    states: dict[ExecutionState, int]

    def share(self, state: ExecutionState) -> float:
        """Percent of the group in `state`."""
        return 100 * self.states.get(state, 0) / max(1, self.size)


class RolloutStatus(msgspec.Struct, frozen=True):
    """A rollout with its groups, and at most MAX_SHOWN executions, those first that need attention.

    Executions with group_index -1 are devices that the module does not fit. `waits` is what it waits for, in words.
    `notes` are what a person should know of one that was just created; empty otherwise.
    """

    rollout: Rollout
    groups: tuple[GroupStatus, ...]
    executions: tuple[Execution, ...]
    waits: tuple[Wait, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def not_eligible(self) -> tuple[Execution, ...]:
        return tuple(e for e in self.executions if e.group_index == NOT_ELIGIBLE)


def status(rollout: Rollout, counts: Counts, shown: Sequence[Execution], waits: Sequence[Wait] = ()) -> RolloutStatus:
    groups = [_group(rollout, index, counts[index]) for index in sorted(counts)]
    return RolloutStatus(rollout, tuple(groups), tuple(shown), tuple(waits))


def _group(rollout: Rollout, index: int, states: Mapping[ExecutionState, int]) -> GroupStatus:
    some = {state: count for state, count in states.items() if count}
    return GroupStatus(index, sum(some.values()), index <= rollout.group_index, some)
