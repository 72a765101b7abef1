"""A gate between two groups of a rollout: the next one opens once the candidate has proved no worse. Pure values.

`plan` says when a rollout stands at its gate and what follows from the answer, `arms.gates` finds the answer.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloud_hub.arms.margins import Margins

GateWord = Literal["waiting", "fine", "worse", "undecided"]


class CompareGate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Compare the devices verified so far with `baseline` (0: the version that most of them ran before).

    Devices of later groups that still run it are the control. Without a word after `deadline_s` the rollout does what
    `undecided` says: it stops, or it opens the next group.
    """

    baseline: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    margins: Margins = Margins()
    alpha: float = 0.05
    deadline_s: float = 86_400.0
    undecided: Literal["stop", "open"] = "stop"

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.5:
            raise ValueError(f"gate alpha: expected more than 0 and at most 0.5, got {self.alpha}")
        if not 0 < self.deadline_s <= 366 * 86_400:
            raise ValueError(f"gate deadline_s: expected more than 0 seconds and at most a year, got {self.deadline_s}")


class GateState(msgspec.Struct, frozen=True):
    """How the gate behind `group` stands: `since` when the rollout waits at it, and the latest word with its reason."""

    group: int
    since: float
    word: GateWord = "waiting"
    reason: str = ""
    at: float | None = None
