"""Control groups (version 2): limits for all of a worker's processes together, and who ran out of memory.

The agent makes them below its own group, and only where that was handed over to it (systemd's Delegate=, or a
container's own tree): it moves itself into a leaf, because a group with children may hold no processes. Blocking but
quick: these are files of the kernel. Called by `agent.sandbox.cage`.
Source: kernel documentation, admin-guide/cgroup-v2.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from agent.errors import AgentError
from modules.manifest import Resources

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
AGENT_LEAF, MODULES = "agent", "modules"
RUNTIME_MIB = 256  # what the interpreter and the libraries take, beside the module's own memory
MAX_PROCESSES = 512  # threads count, too
CPU_WEIGHT = 50  # the agent and the rest of the device have 100
CPU_PERIOD_US = 100_000
LOW_CPU_WEIGHT = 5  # of a worker that is only tried
_NEEDED = ("memory", "pids")
_WANTED = (*_NEEDED, "cpu")


class CgroupError(AgentError):
    """There are no control groups for workers here; the message says why."""

    key = "cgroup"


@dataclass(frozen=True)
class Cgroup:
    """One worker's group."""

    path: Path

    def admit(self, pid: int) -> None:
        """Moves a process and its children in; the children it starts later are born there. Raises CgroupError."""
        try:
            _write(self.path / "cgroup.procs", str(pid))
            for child in _children(pid):
                self.admit(child)
        except ProcessLookupError:
            return  # ended meanwhile
        except OSError as error:
            raise CgroupError(f"{self.path}: process {pid} does not move in: {error.strerror}") from error

    def weigh(self, weight: int) -> None:
        """Its share of the processors against its neighbours', where the controller is there."""
        with contextlib.suppress(OSError):
            _write(self.path / "cpu.weight", str(weight))

    def counts_processors(self) -> bool:
        return (self.path / "cpu.max").exists()

    def cap(self, percent: int) -> bool:
        """At most this much of a processor (0: no limit), where the controller is there."""
        quota = str(percent * CPU_PERIOD_US // 100) if percent else "max"
        try:
            _write(self.path / "cpu.max", f"{quota} {CPU_PERIOD_US}")
        except OSError:
            return False
        return True

    def memory(self) -> str:
        """The most that it took, and what it may take, in words; empty where the kernel does not tell."""
        peak, limit = _mib(self.path / "memory.peak"), _mib(self.path / "memory.max")
        words = [f"peak {peak} MiB"] if peak else []
        return ", ".join([*words, f"limit {limit} MiB"] if limit else words)

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for want of memory."""
        try:
            fields = dict(line.split() for line in (self.path / "memory.events").read_text().splitlines())
            return int(fields.get("oom_kill", 0))
        except (OSError, ValueError):
            return 0

    def remove(self) -> None:
        """Ends what is still in it. A group that cannot go stays for the next worker of that name to be emptied."""
        with contextlib.suppress(OSError):
            _write(self.path / "cgroup.kill", "1")
        with contextlib.suppress(OSError):
            self.path.rmdir()


class Subtree:
    """The agent's own part of the tree."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def open(cls, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Subtree:
        """Makes room for workers' groups below ours. Raises CgroupError when this is not ours to do."""
        own = _own(root, membership)
        offered = _words(own / "cgroup.controllers")
        missing = [name for name in _NEEDED if name not in offered]
        if missing:
            raise CgroupError(
                f"cgroup {own}: expected the controllers {' and '.join(_NEEDED)}, {missing[0]} is missing"
            )
        if own.name == AGENT_LEAF:  # we have been here before
            return cls(own.parent / MODULES)
        others = [pid for pid in _words(own / "cgroup.procs") if pid != str(os.getpid())]
        if others:
            raise CgroupError(f"cgroup {own}: expected no process but the agent in it, got {len(others)} more")
        try:
            (own / AGENT_LEAF).mkdir(exist_ok=True)
            _write(own / AGENT_LEAF / "cgroup.procs", str(os.getpid()))
            _hand_down(own, offered)
            (own / MODULES).mkdir(exist_ok=True)
            _hand_down(own / MODULES, offered)
        except OSError as error:
            raise CgroupError(f"cgroup {own}: it is not handed over to the agent: {error.strerror}") from error
        return cls(own / MODULES)

    def make(self, name: str, resources: Resources) -> Cgroup:
        """A fresh group with a module's limits. Raises CgroupError."""
        group = Cgroup(self._path / name)
        group.remove()
        try:
            self._sweep()
            group.path.mkdir(exist_ok=True)
            if resources.memory_mib:
                _write(group.path / "memory.max", str((resources.memory_mib + RUNTIME_MIB) * 2**20))
                with contextlib.suppress(OSError):  # a kernel without swap
                    _write(group.path / "memory.swap.max", "0")
            _write(group.path / "memory.oom.group", "1")
            _write(group.path / "pids.max", str(MAX_PROCESSES))
            with contextlib.suppress(OSError):  # the controller is wanted, not needed
                _write(group.path / "cpu.weight", str(CPU_WEIGHT))
                group.cap(resources.cpu_percent)
        except OSError as error:
            raise CgroupError(f"{group.path}: {error.strerror}") from error
        return group

    def _sweep(self) -> None:
        """Groups of workers that were still ending when theirs was to go; the kernel keeps those in use."""
        for path in self._path.iterdir():
            with contextlib.suppress(OSError):
                path.rmdir()


def kernel_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes of this machine the kernel has killed for want of memory; 0 where it does not tell."""
    try:
        fields = dict(line.split() for line in vmstat.read_text().splitlines())
        return int(fields.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def _own(root: Path, membership: Path) -> Path:
    """The folder of our group. Raises CgroupError."""
    try:
        lines = membership.read_text().splitlines()
    except OSError as error:
        raise CgroupError(f"{membership}: {error.strerror}") from error
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or not (root / "cgroup.controllers").exists():
        raise CgroupError(f"{root}: expected control groups of version 2, got none (or those of version 1)")
    return root / path.lstrip("/")


def _hand_down(group: Path, offered: list[str]) -> None:
    names = [name for name in _WANTED if name in offered]
    _write(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in names))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _mib(path: Path) -> int:
    """0 where there is no number, such as for a limit that is none."""
    try:
        return int(path.read_text()) // 2**20
    except (OSError, ValueError):
        return 0


def _write(path: Path, text: str) -> None:
    """Without O_CREAT: a file that the kernel does not offer is an error, not a new file."""
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
