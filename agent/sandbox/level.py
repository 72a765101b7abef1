"""What a worker's confinement amounts to: from the words for what was done to one of four levels.

    none       nothing was done
    process    resource limits, no new privileges, no core dumps: a mistake stays small
    confined   and its own user where the agent is root, Landlock and a system call filter: it reads its own files only,
               reaches no network and starts nothing; or an engine's container keeps it so
    isolated   and its own network, process and mount namespaces: what it cannot reach is not even there

Called by the worker, which measures what it got, and by `agent.sandbox.possible`. docs/understand/sandbox.md tells
what each level stops.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from firmware_profiles.confinement import Confinement

NAMESPACES = ("net", "pid", "mnt")
CONTAINER = "container"
_AS_IN_A_CONTAINER = {"Seccomp": "2", "NoNewPrivs": "1", "CapEff": "0" * 16, "CapBnd": "0" * 16}


def level_of(words: Collection[str], root: bool) -> Confinement:
    """`words` as `confine` and `separated` give them; `root` whether the worker began as root."""
    kinds = {word.partition(":")[0] for word in words}
    if "rlimits" not in kinds:
        return Confinement.NONE
    if CONTAINER not in kinds and (not {"landlock", "seccomp"} <= kinds or (root and "uid" not in kinds)):
        return Confinement.PROCESS
    return Confinement.ISOLATED if {f"{name}ns" for name in NAMESPACES} <= kinds else Confinement.CONFINED


def namespaces(process: str = "self") -> dict[str, int]:
    """A process's namespaces by name; those that cannot be told are left out."""
    found = {}
    for name in NAMESPACES:
        try:
            found[name] = os.stat(f"/proc/{process}/ns/{name}").st_ino
        except OSError:
            continue
    return found


def separated(outside: Mapping[str, int], process: str = "self") -> list[str]:
    """Words for the namespaces that are not those of the agent. Measured, not believed: ask before confinement."""
    inside = namespaces(process)
    found = [f"{name}ns" for name in NAMESPACES if outside.get(name) not in (None, inside.get(name))]
    return [*found, CONTAINER] if "mntns" in found and _contained(process) else found


def _contained(process: str) -> bool:
    """Whether an engine has taken from a process what a worker else gives up itself: another user than root, no
    capabilities and none to be had, a filter of system calls, a root that cannot be written.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        read_only = os.statvfs(f"/proc/{process}/root").f_flag & os.ST_RDONLY
    except OSError:
        return False
    return (
        bool(read_only)
        and fields.get("Uid", "0").split()[1:2] != ["0"]
        and _AS_IN_A_CONTAINER.items() <= fields.items()
    )
