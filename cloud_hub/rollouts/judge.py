"""What a device's report says about its execution. Pure.

Only the report counts: success is the module itself, named with its digest and deployment, after probation. Called by
`turn` for each report.
"""

from __future__ import annotations

import msgspec

from cloud_hub.agents import older
from cloud_hub.rollouts.states import IN_PROGRESS, Execution, ExecutionState
from modules.manifest import NEWER_AGENT
from modules.messages import DeviceReport, ModuleReport, UpdateReport

# The new module served in these steps, so failing after them means that the device went back.
_SERVED = frozenset({"activating", "probation", "reverting"})
_ENDED_BADLY = frozenset({"failed", "rejected", "reverting"})
MAX_REASON = 500


class Wanted(msgspec.Struct, frozen=True):
    """What an execution waits for. The digests are the manifest's of the device's profile, and the configuration's."""

    deployment: str
    module: str
    version: int
    manifest_sha256: str
    config_sha256: str = ""
    candidate: bool = False


def judge(execution: Execution, wanted: Wanted, report: DeviceReport, now: float) -> Execution:
    """The execution after the report; itself when the report says nothing new. Reports in any order do no harm."""
    if execution.state not in IN_PROGRESS:
        return execution
    if brought(wanted, report):
        return execution.ended(ExecutionState.VERIFIED, now)
    if _about(report.last, execution, wanted) and report.last.state in _ENDED_BADLY:
        state = _failure(report.last, execution)
        return execution.ended(state, now, report.last.reason_key or str(state), report.last.reason[:MAX_REASON])
    if _about(report.current, execution, wanted) and report.current.state != "idle":
        return msgspec.structs.replace(
            execution,
            state=ExecutionState.UPDATING,
            reason_key=report.current.state,
            reason=report.current.reason[:MAX_REASON],
        )
    return execution


def judge_return(
    execution: Execution, module: str, before: Wanted | None, report: DeviceReport, now: float, candidate: bool = False
) -> Execution:
    """As `judge`, for a device that is directed to what it had `before`; with None to no such module at all."""
    if execution.state is not ExecutionState.RETURNING:
        return execution
    back = (
        runs(before, report)
        if before is not None
        else not any((one.name, one.candidate) == (module, candidate) for one in report.modules)
    )
    # A report from before it was directed back cannot know of it.
    if back and report.director_version >= execution.director_version:
        return execution.ended(ExecutionState.RETURNED, now)
    last = report.last
    if last.state in _ENDED_BADLY and last.director_version >= execution.director_version:
        return execution.ended(ExecutionState.STUCK, now, last.reason_key or "failed", last.reason[:MAX_REASON])
    return execution


def runs(wanted: Wanted, report: DeviceReport) -> bool:
    """Whether the device already runs exactly this module, verified, whichever deployment brought it."""
    return any(_holds(module, wanted) and _configured(module, wanted, report) for module in report.modules)


def brought(wanted: Wanted, report: DeviceReport) -> bool:
    """Whether the device runs the module because of this very deployment."""
    return any(
        _holds(module, wanted) and module.deployment == wanted.deployment and _configured(module, wanted, report)
        for module in report.modules
    )


def _holds(module: ModuleReport, wanted: Wanted) -> bool:
    return (
        module.name == wanted.module
        and module.candidate == wanted.candidate
        and module.version == wanted.version
        and module.manifest_sha256 == wanted.manifest_sha256
        and module.verified
    )


def _configured(module: ModuleReport, wanted: Wanted, report: DeviceReport) -> bool:
    """Whether it has the configuration; older agents do not say which they have, and are given no new one."""
    return module.config_sha256 == wanted.config_sha256 or older(report.agent_version, NEWER_AGENT)


def _about(update: UpdateReport, execution: Execution, wanted: Wanted) -> bool:
    """Whether the update carries this execution. One refused before its content was known names no deployments."""
    names_it = wanted.deployment in update.deployments or not update.deployments
    return names_it and update.director_version >= execution.director_version


def _failure(last: UpdateReport, execution: Execution) -> ExecutionState:
    if last.state == "rejected":
        return ExecutionState.REJECTED
    return ExecutionState.REVERTED if {last.state, execution.reason_key} & _SERVED else ExecutionState.FAILED
