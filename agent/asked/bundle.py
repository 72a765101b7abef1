"""How this device does, as one JSON object: `python -m agent.asked.bundle STATE LOG_LINES`, for whoever helps it.

What the agent last said of itself, what the doctor finds, what the machine has, how modules crashed, and the last
lines of every log; without secrets, and within a bound. A process of its own, so that the agent keeps none of what
this needs. Started by `agent.asked.diagnostics`, and by `mooring-agent diagnose`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from agent import __version__
from agent.asked.lines import MAX_READ, kept, pick
from agent.asked.redact import without_secrets
from agent.config import StatePaths
from agent.doctor import examine
from agent.errors import AgentError
from agent.logs import KEPT_NAME
from agent.probe.heat import heat
from agent.probe.tree import THIS
from agent.release.launcher import running
from agent.runtimes.evidence import Evidence
from agent.status import load
from modules.commands import MAX_RESULT_BYTES, AskLogs

FORMAT = 1
EXAMINE_S = 80.0
MAX_LOG_BYTES = 256 * 1024  # of one log
MAX_LOGS = 32
_MEMINFO = ("MemTotal", "MemFree", "MemAvailable", "SwapTotal", "SwapFree", "Cached", "Dirty", "Slab", "CmaFree")
_NET = ("bytes_in", "packets_in", "errors_in", "dropped_in", "bytes_out", "packets_out", "errors_out", "dropped_out")
_NET_COLUMNS = (0, 1, 2, 3, 8, 9, 10, 11)  # of /proc/net/dev


async def bundle(paths: StatePaths, log_lines: int) -> bytes:
    """The object as JSON, at most MAX_RESULT_BYTES. Logs are cut, the longest first, where it would be more."""
    facts = {
        "format": FORMAT,
        "at": time.time(),
        "agent": {"version": __version__, "release": running() or "installed", "python": platform.python_version()},
        "system": _system(),
        "status": _status(paths),
        "checks": await _checks(paths),
        "settings": _settings(paths),
        "disk": _disk(paths),
        "memory": _memory(),
        "network": _network(),
        "heat": msgspec.to_builtins(heat(THIS)),
        "crashes": _crashes(paths),
    }
    known = without_secrets(msgspec.to_builtins(facts))
    logs = await asyncio.to_thread(_logs, paths.logs, log_lines)
    return _within(known, logs)


def _system() -> dict[str, Any]:
    name = os.uname()
    return {
        "kernel": f"{name.sysname} {name.release} {name.machine}",
        "os": _os_name(),
        "processors": os.cpu_count(),
        "load": list(os.getloadavg()),
        "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME),
    }


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _status(paths: StatePaths) -> Any:  # noqa: ANN401 - JSON
    """The report that the agent composed last (updates, attacks, modules), how the link stands, what waits."""
    try:
        return msgspec.to_builtins(load(paths))
    except AgentError as error:
        return {"error": str(error)}


async def _checks(paths: StatePaths) -> Any:  # noqa: ANN401 - JSON
    try:
        async with asyncio.timeout(EXAMINE_S):
            return msgspec.to_builtins(await examine(paths))
    except TimeoutError:
        return [{"name": "doctor", "result": "warn", "text": f"not done within {EXAMINE_S:g} s", "hint": ""}]


def _settings(paths: StatePaths) -> Any:  # noqa: ANN401 - JSON
    try:
        return tomllib.loads(paths.config.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return {"error": str(error)}


def _disk(paths: StatePaths) -> dict[str, Any]:
    try:
        usage = shutil.disk_usage(paths.root)
        inodes = os.statvfs(paths.root)
    except OSError as error:
        return {"error": str(error)}
    held = {entry.name: _size(entry) for entry in sorted(paths.root.iterdir()) if not entry.is_symlink()}
    space = {"total": usage.total, "free": usage.free, "inodes": inodes.f_files, "inodes_free": inodes.f_ffree}
    return {**space, "held": held}


def _size(path: Path) -> int:
    """Bytes on the disk, of all that lies below."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += (Path(folder) / name).lstat().st_blocks * 512
            except OSError:
                continue
    return total if path.is_dir() else path.lstat().st_blocks * 512


def _memory() -> dict[str, int]:
    """In MiB."""
    found = {}
    for line in (THIS.text("proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        if name in _MEMINFO:
            found[name] = int(rest.split()[0]) // 1024
    return found


def _network() -> dict[str, dict[str, int]]:
    """Of each interface, since it came up."""
    found = {}
    for line in (THIS.text("proc/net/dev") or "").splitlines()[2:]:
        name, _, rest = line.partition(":")
        counts = rest.split()
        found[name.strip()] = {word: int(counts[i]) for word, i in zip(_NET, _NET_COLUMNS, strict=True)}
    return found


def _crashes(paths: StatePaths) -> dict[str, Any]:
    evidence = Evidence(paths.evidence)
    return {path.stem: evidence.crashes(path.stem) for path in sorted(paths.evidence.glob("*.json"))}


def _logs(folder: Path, log_lines: int) -> dict[str, list[str]]:
    names = [KEPT_NAME, *sorted(path.name for path in folder.glob("[a-z0-9]*.log"))][:MAX_LOGS] if log_lines else []
    asked = AskLogs(limit=max(1, log_lines), max_bytes=MAX_LOG_BYTES)
    return {
        name.removesuffix(".log").removeprefix("_"): list(pick(kept(folder / name, MAX_READ // MAX_LOGS), asked).lines)
        for name in names
    }


def _within(known: dict[str, Any], logs: dict[str, list[str]]) -> bytes:
    while True:
        data = msgspec.json.encode({**known, "logs": logs})
        longest = max(logs, key=lambda name: sum(map(len, logs[name])), default="")
        if len(data) <= MAX_RESULT_BYTES or not longest or not logs[longest]:
            return data
        logs = {**logs, longest: logs[longest][len(logs[longest]) // 2 + 1 :]}


def main() -> int:
    state, log_lines = Path(sys.argv[1]), int(sys.argv[2])
    sys.stdout.buffer.write(asyncio.run(bundle(StatePaths(state), log_lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
