"""Why a device does not run what it shall, and what it is going to be told: in words, for a person who looks at it.

Pure. Of several reasons the first that stands in the way is told: a device that is away cannot fail. Called by
`api.devices`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from cloud_hub.desired import CANDIDATE, Assignment
from cloud_hub.device_rows import Device
from cloud_hub.reports import Difference, differences
from cloud_hub.rollouts.states import ACTIVE, IN_PROGRESS, Execution, ExecutionState, Rollout, RolloutState
from modules.messages import DeviceReport, UpdateReport

DIGEST_SHOWN: Final = 12
_UNDER_WAY = frozenset({ExecutionState.WAITING, ExecutionState.RETURNING, *IN_PROGRESS})


class Part(msgspec.Struct, frozen=True):
    """A device's part in a rollout."""

    rollout: Rollout
    execution: Execution


class Coming(msgspec.Struct, frozen=True):
    """What a rollout under way is going to do on the device, and what it waits for. `version` 0: only configuration."""

    rollout: str
    module: str
    version: int
    state: ExecutionState
    text: str


def explained(device: Device, desired: tuple[Assignment, ...], parts: Sequence[Part]) -> tuple[Difference, ...]:
    """The differences, each with its cause."""
    by_key = {(one.module, one.role == CANDIDATE): one for one in desired}
    found = []
    for difference in differences(desired, device.report):
        assignment = by_key.get((difference.module, difference.candidate))
        cause, text = _cause(device, difference, assignment, parts)
        if difference.why == "other-configuration":
            difference = msgspec.structs.replace(difference, revision=_revision(assignment, parts))
            text = f"{_configurations(difference)}: {text}"
        found.append(msgspec.structs.replace(difference, cause=cause, text=text))
    return tuple(found)


def coming(parts: Sequence[Part], now: float) -> tuple[Coming, ...]:
    """Of rollouts that are not over, newest first."""
    found = []
    for part in parts:
        rollout, execution = part.rollout, part.execution
        open_ = rollout.state in ACTIVE or rollout.state is RolloutState.DRAFT
        if open_ and execution.state in _UNDER_WAY:
            text = _waits(rollout, execution, now)
            found.append(Coming(rollout.id, rollout.module, rollout.version, execution.state, text))
    return tuple(found)


def _cause(
    device: Device, difference: Difference, assignment: Assignment | None, parts: Sequence[Part]
) -> tuple[str, str]:
    report = device.report
    if device.retired_at is not None:
        return "retired", "the device was retired; it is told nothing any more"
    if report is None:
        return "never-reported", "the device has not reported since it was enrolled; its agent may not run"
    if assignment is not None and assignment.profile != report.profile.name:
        said = f"it is meant for {assignment.profile}, and the device says that it is a {report.profile.name}"
        return "wrong-profile", said
    if not device.online:
        return "offline", _away(device)
    if report.director_version < device.director_version:
        text = f"the device knows director version {report.director_version}, and this stands in a later one up to "
        return "not-heard", f"{text}{device.director_version}; its doorbell is rung until it asks"
    return _of_report(report, difference, assignment, parts)


def _of_report(
    report: DeviceReport, difference: Difference, assignment: Assignment | None, parts: Sequence[Part]
) -> tuple[str, str]:
    """What a device says that is there, and knows what it shall run."""
    if difference.why == "not-verified":
        return "probation", "it runs, and has not come through its probation yet"
    if report.current.state != "idle":
        return "updating", f"its update is under way: {_update(report.current)}"
    if difference.why == "not-serving":
        return "module-failed", "the device has it, and its worker does not run; `mooring device logs` says why"
    if _ended_badly(report.last, assignment):
        return "update-failed", f"its update has ended: {_update(report.last)}"
    deployment = "" if assignment is None else assignment.deployment
    failed = next((part.execution for part in parts if part.rollout.id == deployment and part.execution.reason), None)
    if failed is not None:
        return "update-failed", f"in {deployment}: {failed.state}, {failed.reason_key}: {failed.reason}"
    if difference.why == "not-desired":
        return "to-be-removed", "nothing asks for it any more; the device takes it away with its next update"
    return "not-begun", "the device knows of it, and has not begun yet"


def _revision(assignment: Assignment | None, parts: Sequence[Part]) -> int:
    """That of the rollout by which the device shall have its configuration; 0 where that brought a version only."""
    deployment = "" if assignment is None else assignment.deployment
    return next((part.rollout.config for part in parts if part.rollout.id == deployment), 0)


def _configurations(difference: Difference) -> str:
    revision = f" (revision {difference.revision})" if difference.revision else ""
    has, shall = _short(difference.reported_config), _short(difference.desired_config)
    return f"it runs with {has}, and is to have {shall}{revision}"


def _short(digest: str) -> str:
    return f"configuration {digest[:DIGEST_SHOWN]}" if digest else "no configuration"


def _ended_badly(last: UpdateReport, assignment: Assignment | None) -> bool:
    mine = assignment is None or not last.deployments or assignment.deployment in last.deployments
    return mine and last.state in ("failed", "rejected", "reverting")


def _update(update: UpdateReport) -> str:
    share = f", {100 * update.done_bytes // update.total_bytes} % fetched" if update.total_bytes else ""
    attempt = f", attempt {update.attempt}" if update.attempt > 1 else ""
    why = f" ({update.reason_key}: {update.reason})" if update.reason_key else ""
    return f"{update.state}{share}{attempt}{why}"


def _away(device: Device) -> str:
    gone = device.offline_at
    if gone is not None and (device.online_at is None or device.online_at <= gone):
        return f"the device is offline since {_at(gone)}"
    return f"nothing was heard of the device since {_at(device.seen_at or device.report_at or device.created_at)}"


def _waits(rollout: Rollout, execution: Execution, now: float) -> str:
    group = f"group {execution.group_index + 1} of {rollout.id}"
    if execution.state is not ExecutionState.WAITING:
        until = "" if execution.deadline_at is None else f", until {_at(execution.deadline_at)}"
        step = f", {execution.reason_key}" if execution.reason_key else ""
        return f"under way in {group}: {execution.state}{step}{until}"
    if rollout.state is RolloutState.DRAFT:
        return f"waits for {rollout.id} to be started"
    if rollout.state is RolloutState.PAUSED:
        return f"waits in {group}, which is paused; `mooring rollout status {rollout.id}` says why"
    if execution.group_index > rollout.group_index:
        opened = f"; group {rollout.group_index + 1} is" if rollout.group_index >= 0 else ""
        return f"waits for {group}, which is not open yet{opened}"
    if execution.ready_at > now:
        what = "is tried again" if execution.attempt else "may begin"
        return f"waits in {group}; it {what} at {_at(execution.ready_at)}"
    return f"waits for its turn in {group}"


def _at(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
