"""The parent process as the kernel sees it. Source: proc(5). Called by `agent.metrics.server`."""

from __future__ import annotations

import os
import resource
import time

from agent.metrics.page import Process

_STARTED_AT = time.time()


def this_process() -> Process:
    """What cannot be read is 0."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    try:
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
        opened = len(os.listdir("/proc/self/fd"))
    except (OSError, ValueError, IndexError):
        resident = opened = 0
    return Process(used.ru_utime + used.ru_stime, resident, opened, _STARTED_AT)
