"""What a module's priority and limits mean on this device: its share of the processors, and who goes first when memory
runs out. Called by `agent.runtimes` for both and by the session for its threads.

The agent and the rest of the device have a weight of 100 and no malus: a module is always the one that goes, and among
modules the one of low priority. Source: kernel documentation, admin-guide/cgroup-v2 (cpu.weight, cpu.max); proc(5),
oom_score_adj; sched(7), nice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from agent.sandbox.given import Given
from modules.manifest import Priority, Resources


class Share(msgspec.Struct, frozen=True):
    """`weight` is for the control group, `nice` is added where there is none, `oom_score` to the kernel's own score."""

    weight: int
    nice: int
    oom_score: int


SHARES: dict[Priority, Share] = {
    "high": Share(90, 0, 200),
    "normal": Share(50, 0, 500),
    "low": Share(10, 5, 800),
}


def share(resources: Resources) -> Share:
    return SHARES[resources.priority]


def limited(given: Given, resources: Resources, pinned: bool, capped: bool, gpu_memory_mib: int) -> Given:
    """`given`, with this module's part of the machine; `gpu_memory_mib` is the device's word where it says nothing."""
    return msgspec.structs.replace(
        given,
        cpus=cpus(resources, sorted(os.sched_getaffinity(0)), pinned, capped),
        oom_score=share(resources).oom_score,
        gpu_memory_mib=resources.gpu_memory_mib or gpu_memory_mib,
    )


def settle(given: Given) -> None:
    """In the worker, before it has threads and gives up its rights. What the kernel does not let it do is left out."""
    with contextlib.suppress(OSError, ValueError):
        os.sched_setaffinity(0, given.cpus or os.sched_getaffinity(0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(given.oom_score))


def cpus(resources: Resources, available: Sequence[int], pinned: bool, capped: bool) -> tuple[int, ...]:
    """The processors that a module's threads may use; empty for all of them.

    Where modules are `pinned`, the first is the agent's and the application's, and low priority gets the upper half of
    the others; high priority may use all. Without a control group that caps it (`capped`), `cpu_percent` takes away
    whole processors, which is coarser.
    """
    free = sorted(available)
    if pinned and len(free) > 1 and resources.priority != "high":
        free = free[1:]
        if resources.priority == "low":
            free = free[len(free) // 2 :]
    if resources.cpu_percent and not capped:
        free = free[-max(1, -(-resources.cpu_percent // 100)) :]
    return tuple(free) if len(free) < len(available) else ()


def threads(resources: Resources, available: int, pinned: bool) -> int:
    """For one prediction: as the manifest says, or one core left free, and no more than `cpu_percent` pays for."""
    cores = available if pinned else max(1, available - 1)
    paid = max(1, resources.cpu_percent // 100) if resources.cpu_percent else cores
    return resources.threads or min(cores, paid)
