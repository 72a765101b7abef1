"""How the machine is now: a few small files of the kernel, read for each report. Called by `agent.service`.

Sources: proc(5) for uptime, loadavg and MemAvailable; statvfs(3); driver-api/thermal/sysfs-api of the kernel.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.probe.memory import disk_mib, memory_mib
from agent.probe.tree import THIS, Tree
from modules.vitals import LinkQuality, Vitals

_ZONES = "sys/class/thermal"
_MOST_ZONES = 64
# What a sensor may say; more or less is one that is not connected.
_COLDEST_C, _HOTTEST_C = -60.0, 200.0


def vitals(state: Path, link: LinkQuality, tree: Tree = THIS) -> Vitals:
    """`state` is the folder whose disk counts. Never raises; reads files, some of which ask the hardware."""
    return Vitals(
        uptime_s=_first_number(tree, "proc/uptime") or 0.0,
        disk_mib=disk_mib(state),
        disk_free_mib=_free_mib(state),
        memory_free_mib=memory_mib(tree, "MemAvailable") or None,
        load=_load(tree),
        temperature_c=_hottest_c(tree),
        link=link,
    )


def _free_mib(folder: Path) -> int | None:
    try:
        space = os.statvfs(folder)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize // (1024 * 1024)


def _load(tree: Tree) -> float | None:
    running = _first_number(tree, "proc/loadavg")
    return None if running is None else round(running / (os.cpu_count() or 1), 2)


def _hottest_c(tree: Tree) -> float | None:
    zones = [name for name in tree.names(_ZONES) if re.fullmatch(r"thermal_zone\d+", name)][:_MOST_ZONES]
    found = [milli / 1000 for name in zones if (milli := tree.number(f"{_ZONES}/{name}/temp")) is not None]
    return max((round(celsius) for celsius in found if _COLDEST_C <= celsius <= _HOTTEST_C), default=None)


def _first_number(tree: Tree, path: str) -> float | None:
    match = re.match(r"\d+(\.\d+)?", tree.text(path))
    return float(match[0]) if match else None
