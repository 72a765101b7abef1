"""Memory and disk. Called by `agent.probe.device`. Source: proc(5), statvfs(3)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from agent.probe.tree import Tree


def memory_mib(tree: Tree, field: str = "MemTotal") -> int:
    """0 where the kernel does not say."""
    match = re.search(rf"^{field}:\s+(\d+) kB", tree.text("proc/meminfo"), re.MULTILINE)
    return int(match[1]) // 1024 if match else 0


def disk_mib(folder: Path) -> int:
    """Of the file system that `folder` lies on, free or not."""
    try:
        space = os.statvfs(folder)
    except OSError:
        return 0
    return space.f_blocks * space.f_frsize // (1024 * 1024)
