"""A candidate as values: what an operator asks for, what is kept, and what is told of it. Pure; used by the API and its
clients. The rollout that brings a candidate has its id.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloud_hub.arms.compare import Comparison
from cloud_hub.errors import BadRequest
from cloud_hub.rollouts.approval import Approval
from cloud_hub.rollouts.beside import Beside, Split, Way
from cloud_hub.rollouts.gate import AlertGate
from cloud_hub.rollouts.maintenance import MaintenanceWindow
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.plan import OnFailure
from cloud_hub.rollouts.states import RolloutState

CandidateState = Literal["running", "promoted", "dropped"]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Salt = Annotated[str, msgspec.Meta(max_length=64)]
_Reason = Annotated[str, msgspec.Meta(max_length=500)]


class NewCandidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to run beside the version that serves, for whom, and how it gets there: the rest is as in `NewRollout`.

    `share` is of the predictions on each device, or with split `device` of the devices. Without a `salt` one is made:
    with that of an earlier candidate the same keys are drawn.
    """

    module: str
    version: Annotated[int, msgspec.Meta(ge=1, le=10**9 - 1)]
    way: Way = "shadow"
    share: _Share = 1.0
    split: Split = "request"
    salt: _Salt = ""
    target: str = "all"
    groups: tuple[str, ...] = ("rest",)
    error_threshold: float = 0.0
    on_failure: OnFailure = "stop"
    device_deadline_s: float = 3600.0
    deadline_s: float = 7 * 86_400.0
    windows: tuple[MaintenanceWindow, ...] = ()
    approval: Approval | None = None
    alert_gate: AlertGate | None = None
    soak_s: float = 0.0

    def rollout(self, salt: str) -> NewRollout:
        """What brings it to the devices, as a draft. Raises BadRequest `plan-invalid`."""
        try:
            beside = Beside(self.way, self.share, self.split, salt)
        except ValueError as error:
            raise BadRequest("plan-invalid", f"{error}; nothing was created") from error
        shared = {name: getattr(self, name) for name in NewRollout.__struct_fields__ if hasattr(self, name)}
        return NewRollout(**{name: said for name, said in shared.items() if name != "rollout"}, candidate=beside)


class Candidate(msgspec.Struct, frozen=True):
    """One that runs, or has run. `promoted_by` is the rollout that made it the main version."""

    id: str
    module: str
    version: int
    way: Way
    split: Split
    share: float
    salt: str
    target: str
    state: CandidateState
    promoted_by: str
    created_at: float
    creator: str
    ended_at: float | None


class ShareChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another share of the predictions."""

    share: _Share


class Promotion(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the candidate becomes the main version: as in `NewRollout`. An empty `target` is the candidate's own."""

    target: str = ""
    groups: tuple[str, ...] = ("rest",)
    error_threshold: float = 0.0
    on_failure: OnFailure = "stop"
    device_deadline_s: float = 3600.0
    deadline_s: float = 7 * 86_400.0


class Drop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Why, for the audit trail."""

    reason: _Reason = ""


class Outcomes(msgspec.Struct, frozen=True):
    """What devices count of the candidate since its workers started, summed over `devices` that have it.

    `fed` predictions were given to it of those `offered` (a shadow), `answered` requests answered by it, `kept` were
    never asked of it and `fell_back` were, and had to be answered by the main version (an arm). Of `compared` rows the
    two versions said the same in `agreed`. `reasons` are the counts of what was missed, kept or fell back, by word.
    """

    devices: int = 0
    requests: int = 0
    errors: int = 0
    restarts: int = 0
    offered: int = 0
    fed: int = 0
    missed: int = 0
    answered: int = 0
    kept: int = 0
    fell_back: int = 0
    compared: int = 0
    agreed: int = 0
    reasons: dict[str, int] = {}

    @property
    def agreement(self) -> float | None:
        return self.agreed / self.compared if self.compared else None


class CandidateReport(msgspec.Struct, frozen=True):
    """How a candidate does: where its rollout stands, what devices count, and the versions against each other.

    `comparison` is null while nothing of both was counted. `partial`: more devices have it than were read.
    """

    candidate: Candidate
    rollout: RolloutState
    verified: int
    outcomes: Outcomes
    partial: bool
    comparison: Comparison | None
