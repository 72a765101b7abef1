"""Processes under measurement: what they use of processors and memory, by their ids."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of the process, its threads included, without children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def pss_mib(pid: int) -> float:
    """What the process has in memory, shared pages divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid}: no Pss")


def children(pid: int) -> dict[int, str]:
    """The name of each child, by its id."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
    return found


@dataclass
class Meter:
    """Cores that a process has used since the meter was made, and the most memory that was seen."""

    pid: int
    began: float = field(default_factory=time.monotonic)
    most_mib: float = 0.0

    def __post_init__(self) -> None:
        self._cpu = cpu_s(self.pid)

    def look(self) -> None:
        self.most_mib = max(self.most_mib, pss_mib(self.pid))

    @property
    def cores(self) -> float:
        return (cpu_s(self.pid) - self._cpu) / (time.monotonic() - self.began)
