"""What an operator sends to have a rollout: the plan in the words of people. Pure; used by the API and its clients."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_hub.errors import BadRequest
from cloud_hub.rollouts.approval import Approval
from cloud_hub.rollouts.beside import Beside
from cloud_hub.rollouts.gate import AlertGate, CompareGate
from cloud_hub.rollouts.maintenance import MaintenanceWindow
from cloud_hub.rollouts.plan import FailureThreshold, Group, OnConflict, OnFailure, Plan
from cloud_hub.rollouts.rate import Rate
from modules.manifest import SamplingPolicy

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class NewRollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an operator asks for. `groups` are texts such as "1", "20%", "site=lab" and "rest"; the rest as in `Plan`.

    `config` is a revision of the module's configuration that goes with it, 0 for none. `version` 0 leaves every device
    the version that it is assigned, so that only the configuration changes.
    """

    module: str
    version: Annotated[int, msgspec.Meta(ge=0, le=10**9 - 1)] = 0
    target: str = "all"
    groups: tuple[str, ...] = ("rest",)
    success_threshold: float = 100.0
    error_threshold: float = 0.0
    min_count: _Count = 1
    device_deadline_s: float = 3600.0
    deadline_s: float = 7 * 86_400.0
    sampling: SamplingPolicy | None = None
    gate: CompareGate | None = None
    start: bool = False
    rate: Rate | None = None
    thresholds: tuple[FailureThreshold, ...] = ()
    on_failure: OnFailure = "stop"
    conflict: OnConflict = "refuse"
    retries: _Count = 0
    retry_after_s: float = 600.0
    joining: bool = False
    windows: tuple[MaintenanceWindow, ...] = ()
    approval: Approval | None = None
    alert_gate: AlertGate | None = None
    soak_s: float = 0.0
    candidate: Beside | None = None
    config: _Count = 0

    def plan(self) -> Plan:
        """Raises BadRequest `plan-invalid` naming the value."""
        said = {name: getattr(self, name) for name in Plan.__struct_fields__ if name != "groups"}
        try:
            if not self.version and not self.config:
                raise ValueError("version: expected a version, a revision of the configuration, or both")
            if self.candidate is not None and (self.config or not self.version):
                raise ValueError("candidate: expected a version alone: it has the configuration of the main version")
            return Plan(groups=tuple(Group.parse(text) for text in self.groups), **said)
        except ValueError as error:
            raise BadRequest("plan-invalid", f"{error}; nothing was created") from error
