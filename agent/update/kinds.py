"""How a module is tried, put to work, watched and taken back: that differs by its kind, and this is the seam.

A kind is the `runtime.kind` of a manifest. What every module shares (verifying, fetching, slots) is
`agent.update.steps`; what follows on what is `states`. The first kind is `agent.update.processes`. Made by the
composition root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from agent.installed import Installed, ModuleSet, of_kind
from agent.runtimes.past import Before
from agent.update.probation import Judgement


class Kind(Protocol):
    """Every method is safe to repeat from its start, and ends soon after it is cancelled. Sets hold only modules of
    this kind, and may be empty. What fails is an AgentError: its key and text become the update's reason.
    """

    async def try_out(self, trial: Sequence[Installed]) -> None:
        """Proves what can be proven before it serves. Raises; the old set serves on."""
        ...

    async def activate(self, target: ModuleSet, trial: Sequence[Installed]) -> Mapping[str, Before]:
        """Puts `target` to work, with what `try_out` has made. Returns, by name, how that did which was there before:
        it is kept durably through probation. Raises; `revert` follows.
        """
        ...

    async def judge(self, module: Installed, before: Before | None, elapsed_s: float) -> Judgement:
        """Asked again and again during probation, also in an agent that has come back in it. Raising is a verdict."""
        ...

    async def revert(self, current: ModuleSet) -> None:
        """Puts `current` to work again, whatever stands. Raises only where another try may help."""
        ...

    async def commit(self, current: ModuleSet) -> None:
        """`current` is written down. Also called where only policies, modes or removals differ."""
        ...

    async def discard(self) -> None:
        """Ends what `try_out` made and `activate` did not take."""
        ...

    def trial_deadline_s(self, module: Installed) -> float:
        """How long `try_out` may take for one module."""
        ...

    def probation_deadline_s(self, module: Installed) -> float:
        """By when `judge` must have come to a verdict."""
        ...

    def look_every_s(self, module: Installed) -> float:
        """How often `judge` is worth asking."""
        ...


class Kinds:
    """All kinds of this agent, by name, as one. They are put to work in the order given, and taken back against it."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = dict(kinds)

    def of(self, module: Installed) -> Kind:
        return self._kinds[module.kind]

    def knows(self, kind: str) -> bool:
        return kind in self._kinds

    async def try_out(self, trial: Sequence[Installed]) -> None:
        for name, kind in self._kinds.items():
            await kind.try_out([module for module in trial if module.kind == name])

    async def activate(self, target: ModuleSet, trial: Sequence[Installed]) -> dict[str, Before]:
        before: dict[str, Before] = {}
        for name, kind in self._kinds.items():
            mine = [module for module in trial if module.kind == name]
            before |= await kind.activate(of_kind(target, name), mine)
        return before

    async def revert(self, current: ModuleSet) -> None:
        for name, kind in reversed(self._kinds.items()):
            await kind.revert(of_kind(current, name))

    async def commit(self, current: ModuleSet) -> None:
        for name, kind in self._kinds.items():
            await kind.commit(of_kind(current, name))

    async def discard(self) -> None:
        for kind in self._kinds.values():
            await kind.discard()
