"""What `mooring-agent status` shows: the report that the agent last composed, read from its file. Asks nobody.

Called by `agent.cli`. A running agent is known by the lock that it holds, not by its process id.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from agent.config import StatePaths
from agent.errors import StoreError
from agent.report import Status, read_status
from modules.messages import ModuleReport, UpdateReport

LOCK_FILE = "agent.lock"


def running(paths: StatePaths) -> bool:
    """Whether an agent holds this state directory now."""
    try:
        handle = os.open(paths.root / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def load(paths: StatePaths) -> Status | None:
    """None before the first run. Raises StoreError when the file is not what an agent writes."""
    try:
        return read_status(paths.status)
    except (OSError, msgspec.DecodeError) as error:
        raise StoreError(f"{paths.status}: {error}") from error


def as_json(status: Status | None, is_running: bool) -> str:
    """One object: `running`, and the fields of Status when there is one."""
    fields = msgspec.to_builtins(status) if status is not None else {}
    return msgspec.json.format(msgspec.json.encode({"running": is_running, **fields})).decode()


def as_text(status: Status | None, is_running: bool) -> str:
    return "\n".join(_lines(status, is_running))


def _lines(status: Status | None, is_running: bool) -> Iterator[str]:
    yield f"agent     {'running' if is_running else 'not running'}"
    if status is None:
        return
    report, link = status.report, status.link
    yield f"device    {report.device}, profile {report.profile.name}, agent {report.agent_version}"
    if is_running:
        connection = f"connected since {_time(link.since)}" if link.connected else f"offline: {link.error or 'no link'}"
        yield f"hub       {connection}"
    yield f"desired   director version {report.director_version}, image repository version {report.image_version}"
    yield f"update    {_update(report.current)}"
    if report.last.state != "idle":
        yield f"last      {_update(report.last)}"
    for module in report.modules:
        yield f"module    {_module(module)}"
    waiting = ", ".join(f"{count} {stream}" for stream, count in sorted(status.waiting.items()) if count)
    yield f"waiting   {waiting or 'nothing'} for the hub"
    if status.traffic:
        yield f"fetched   {', '.join(f'{count} bytes {origin}' for origin, count in sorted(status.traffic.items()))}"
    for attack in report.attacks:
        yield f"refused   {attack.key} ({attack.count} times, last {_time(attack.at)}): {attack.text}"
    yield f"written   {_time(status.written_at)}"


def _update(update: UpdateReport) -> str:
    parts = [update.state, f"director version {update.director_version}" if update.director_version else ""]
    parts.append(f"attempt {update.attempt}" if update.attempt > 1 else "")
    parts.append(f"{update.done_bytes} of {update.total_bytes} bytes" if update.state == "fetching" else "")
    parts.append(f"{update.reason_key}: {update.reason}" if update.reason_key else "")
    return ", ".join(filter(None, parts))


def _module(module: ModuleReport) -> str:
    verified = "verified" if module.verified else "not verified yet"
    counts = f"{module.requests} requests, {module.errors} errors, {module.restarts} restarts"
    beside = f"{module.mode} of {module.share:.0%}" if module.candidate else ""
    words = [f"{module.name} version {module.version}", beside, module.state, verified, counts, module.execution]
    if module.beside:
        words.append(", ".join(f"{what} {count}" for what, count in module.beside.items()))
    if module.sampling:
        words.append(f"no samples: {module.sampling}")
    if module.samples_dropped:
        words.append("samples " + ", ".join(f"{why} {count}" for why, count in module.samples_dropped.items()))
    held = f"{module.level} ({module.confinement})" if module.level else module.confinement
    return ", ".join(filter(None, [*words, held, module.endpoint]))


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
