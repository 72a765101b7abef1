"""How much of the processors a worker gets: little while it is only tried, its full share from when it serves.

Loading a model keeps a processor busy for as long as it takes, and on a small device that is half of them: without
this, requests to the module that still serves wait behind it. Three ways, because which one counts depends on the
kernel: the control group's weight where there is one, the autogroup of the worker's session, and the nice value, which
is only lowered where it can be raised again. Called by `agent.runtimes.process`.
Source: sched(7), setpriority(2); kernel documentation, admin-guide/cgroup-v2.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agent.sandbox.cgroup import LOW_CPU_WEIGHT
from agent.sandbox.host import WorkerProcess
from agent.sandbox.share import share

LOW = 10  # about a tenth of what others get
_CAP_SYS_NICE = 1 << 23
_AGAIN_S, _TRIES = 0.11, 20  # the kernel takes one change of an autogroup in a tenth of a second


@asynccontextmanager
async def quiet(worker: WorkerProcess, at_most_s: float) -> AsyncIterator[None]:
    """Inside, the worker yields to others, for `at_most_s` (0: not at all). Its share is the caller's to `restore`."""
    if not at_most_s:
        yield
        return
    await _lower(worker)
    hurry = asyncio.create_task(_later(worker, at_most_s), name=f"hurry-{worker.name}")
    try:
        yield
    finally:
        hurry.cancel()
        await asyncio.wait([hurry])


async def _later(worker: WorkerProcess, wait_s: float) -> None:
    await asyncio.sleep(wait_s)
    await restore(worker)


async def _lower(worker: WorkerProcess) -> None:
    """Whatever of it does not work here is left out."""
    if _can_raise():
        _renice(worker, LOW)
    await _autogroup(worker, LOW)
    worker.weigh(LOW_CPU_WEIGHT)


async def restore(worker: WorkerProcess) -> None:
    """The share that its module's priority gives it, for all of the worker's threads."""
    its = share(worker.resources)
    worker.weigh(its.weight)
    worker.cap(worker.resources.cpu_percent)
    await _autogroup(worker, its.nice)
    _renice(worker, os.getpriority(os.PRIO_PROCESS, 0) + its.nice)


async def slow(worker: WorkerProcess) -> None:
    """Little of the processors until it is `restore`d, and half at most of what it might have otherwise."""
    await _lower(worker)
    worker.cap(max(1, (worker.resources.cpu_percent or 100 * len(os.sched_getaffinity(0))) // 2))


def _renice(worker: WorkerProcess, value: int) -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PGRP, worker.pid, value)


async def _autogroup(worker: WorkerProcess, value: int) -> None:
    for _ in range(_TRIES):
        try:
            Path(f"/proc/{worker.pid}/autogroup").write_text(str(value))
        except BlockingIOError:
            await asyncio.sleep(_AGAIN_S)
        except OSError:
            return  # none here, or the worker is gone
        else:
            return


def _can_raise() -> bool:
    """Whether we may give a process back the priority that we took from it, also when it has become another user."""
    if os.geteuid() != 0:
        return resource.getrlimit(resource.RLIMIT_NICE)[0] >= 20 - os.getpriority(os.PRIO_PROCESS, 0)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    effective = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return bool(effective & _CAP_SYS_NICE)
