"""The command line that puts a worker into namespaces of its own: bubblewrap, and systemd-run for its limits.

Pure: what is on the disk and who we are come as arguments or from `agent.sandbox.confine`. The worker inside still
confines itself as it does without: a wrapper is a second wall, not another one. The environment is clean already
(`agent.sandbox.host`), and inherited descriptors pass through. Called by `agent.sandbox.cage`.
Source: bwrap(1) 0.8, systemd-run(1) 252.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent.sandbox.cgroup import CPU_WEIGHT, MAX_PROCESSES, RUNTIME_MIB
from agent.sandbox.confine import readable
from agent.sandbox.room import NO_ROOM, Room
from modules.manifest import Resources

# In a user namespace there is no other user to become, so root with users to give away makes none.
_ALL = ("--unshare-all",)
_ALL_BUT_USERS = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_TO_CHANGE_USER = ("CAP_SETUID", "CAP_SETGID", "CAP_DAC_READ_SEARCH", "CAP_KILL")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_OWN_MOUNTS = ("/proc", "/dev")


def bubblewrap(bwrap: str, slot: Path, uid: int, extra: Iterable[Path] = (), room: Room = NO_ROOM) -> tuple[str, ...]:
    """What to write before the worker's own command. `uid` is the user it will become (0: it stays who it is)."""
    command = [bwrap, *(_ALL_BUT_USERS if uid else _ALL), "--die-with-parent"]
    if uid:
        command += ["--cap-drop", "ALL", *(word for cap in _TO_CHANGE_USER for word in ("--cap-add", cap))]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 - the worker's own
    given = (slot, *extra, *room.readable, *room.places)
    shown = list(_outermost([*map(Path, _SYSTEM), *_interpreter(), *readable(), *given]))
    own = [room.cache] if room.cache else []
    for folder in sorted({parent for path in [*shown, *own] for parent in path.parents if parent != Path("/")}):
        command += ["--perms", "0755", "--dir", str(folder)]  # else they are as closed as our umask has it
    for path in shown:
        if path.is_symlink() and str(path) in _SYSTEM:
            command += ["--symlink", os.readlink(path), str(path)]
        else:
            command += ["--ro-bind-try", str(path), str(path)]
    for device in (*room.devices, *room.shared, *room.cameras):
        command += ["--dev-bind-try", str(device), str(device)]
    for path in own:
        command += ["--bind-try", str(path), str(path)]
    return (*command, "--chdir", "/", "--")


def systemd_scope(systemd_run: str, unit: str, resources: Resources) -> tuple[str, ...]:
    """A transient scope with a module's limits, for an agent whose own control group is not handed over to it.

    A scope and not a service: a service is systemd's child, to which our sockets cannot be given.
    """
    limits = [f"TasksMax={MAX_PROCESSES}", f"CPUWeight={CPU_WEIGHT}"]
    if resources.memory_mib:
        limits += [f"MemoryMax={(resources.memory_mib + RUNTIME_MIB)}M", "MemorySwapMax=0"]
    if resources.cpu_percent:
        limits.append(f"CPUQuota={resources.cpu_percent}%")
    properties = [f"--property={limit}" for limit in limits]
    return (systemd_run, "--scope", "--quiet", "--collect", f"--unit={unit}", *properties, "--")


def _interpreter() -> Iterator[Path]:
    yield Path(sys.prefix)
    yield Path(sys.base_prefix)
    yield Path(sys.executable)
    yield Path(os.path.realpath(sys.executable))


def _outermost(paths: Iterable[Path]) -> Iterator[Path]:
    """Each path once, without those beneath another, and without what the sandbox has of its own."""
    kept: list[Path] = []
    for path in sorted(dict.fromkeys(paths), key=lambda path: len(path.parts)):
        if path == Path("/") or any(path.is_relative_to(own) for own in _OWN_MOUNTS):
            continue
        if not any(path.is_relative_to(other) for other in kept):
            kept.append(path)
    return iter(kept)
