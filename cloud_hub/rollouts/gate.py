"""Gates between two groups of a rollout: the next one opens once the candidate has proved no worse. Pure values.

A gate may compare versions, look at alerts, or both. `decide` says when a rollout stands at its gate and what follows
from the one word of it, `arms.gates` finds the word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from cloud_hub.arms.margins import Margins

GateWord = Literal["waiting", "fine", "worse", "undecided"]
# What monitoring.alert_book calls kinds, without clones: two devices with one key say nothing of a module.
GateAlertKind = Literal["drift", "quality", "concept", "performance"]
ALERT_KINDS: Final[tuple[GateAlertKind, ...]] = ("drift", "quality", "concept", "performance")
# The first that some gate says is what all of them say together.
_ORDER: Final[tuple[GateWord, ...]] = ("worse", "waiting", "undecided", "fine")
MAX_REASON: Final = 1000


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


class AlertGate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Live alerts of these kinds and at least this severity say "worse" of the candidate.

    Only alerts about the rollout's version that opened since the rollout started, on its devices or on many. Whoever
    resolves such an alert says that it does not speak against the candidate; the gate's reason states it.
    """

    kinds: Annotated[tuple[GateAlertKind, ...], msgspec.Meta(min_length=1, max_length=len(ALERT_KINDS))] = ALERT_KINDS
    severity: Literal["warning", "critical"] = "warning"

    @property
    def severities(self) -> tuple[str, ...]:
        return ("critical",) if self.severity == "critical" else ("warning", "critical")


class GateState(msgspec.Struct, frozen=True):
    """How the gate behind `group` stands: `since` when the rollout waits at it, and the latest word with its reason."""

    group: int
    since: float
    word: GateWord = "waiting"
    reason: str = ""
    at: float | None = None


class Answer(msgspec.Struct, frozen=True):
    """What one gate says, and why."""

    word: GateWord
    reason: str = ""


def together(answers: Sequence[Answer]) -> Answer:
    """The word of several gates: worse as soon as one says so, fine only when all do. Reasons of that word."""
    said = {answer.word for answer in answers}
    word: GateWord = next((word for word in _ORDER if word in said), "fine")
    reasons = [answer.reason for answer in answers if answer.reason and (answer.word == word or word == "fine")]
    return Answer(word, "; ".join(reasons)[:MAX_REASON])
