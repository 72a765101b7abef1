"""What a worker gives up before it opens a module's files: rights, files, sockets, other programs.

In order: own user (where we are root and were told one), rlimits, no_new_privs, no capabilities, Landlock, seccomp.
What the kernel does not offer is left out, and `confine` says which level was reached; only a user that cannot be
changed is an error. Called once by the worker and by the decoder of patches (`agent.patching.child`), with everything
imported and before any thread is started.
Source: docs of prctl(2), seccomp(2), capabilities(7); measured order of imports in the design.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import signal
import stat
import sys
import sysconfig
from pathlib import Path

import agent
import firmware_profiles
import modules
from agent.errors import AgentError
from agent.sandbox import landlock
from agent.sandbox.room import NO_ROOM, Room

log = logging.getLogger(__name__)

MAX_FILES = 1024  # descriptors: connections, the slot's files
MAX_LOG_BYTES = (
    64 * 1024 * 1024
)  # of a file that takes what we print, where it is one; no other but in its cache can grow
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 8, 38
_CAP_DAC_READ_SEARCH, _CAP_KILL = 1 << 2, 1 << 5
_CAPABILITY_VERSION_3 = 0x20080522
_CLONE_THREAD = 0x00010000
# What the runtimes read of the machine: processors for their threads, memory, time zone, the linker's cache.
_MACHINE = (
    "/sys/devices/system/cpu", "/sys/fs/cgroup", "/proc/cpuinfo", "/proc/meminfo", "/proc/self/maps",
    "/proc/self/status", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom", "/dev/null",
)  # fmt: skip
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
# Never needed after the start, each a way out or a way to harm others. Changing modes and owners is here because
# Landlock does not cover it.
_FORBIDDEN = (
    "socket", "connect", "bind", "execve", "execveat", "fork", "vfork", "kill", "tkill", "pidfd_open",
    "pidfd_send_signal", "pidfd_getfd", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "ptrace", "process_vm_readv",
    "process_vm_writev", "process_madvise", "kcmp", "mount", "umount2", "move_mount", "open_tree", "fsopen",
    "fsmount", "fsconfig", "fspick", "mount_setattr", "pivot_root", "chroot", "unshare", "setns", "bpf",
    "io_uring_setup", "io_uring_enter", "io_uring_register", "perf_event_open", "userfaultfd", "add_key",
    "request_key", "keyctl", "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
    "reboot", "swapon", "swapoff", "acct", "quotactl", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex",
    "sethostname", "setdomainname", "syslog", "open_by_handle_at", "name_to_handle_at", "fanotify_init",
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes",
    "utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
    "truncate", "setpriority", "ioprio_set", "migrate_pages", "move_pages", "process_mrelease",
    "mknod", "mknodat", "memfd_secret", "lookup_dcookie", "vhangup", "iopl", "ioperm", "personality",
)  # fmt: skip


class ConfineError(AgentError):
    """The worker cannot become what it was told to be."""

    key = "confine-failed"


def die_with_parent(parent: int) -> None:
    """The kernel kills us when the parent is gone; also when it went before we could ask."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != parent:
        os._exit(1)


def drop_rights() -> None:
    """For what only waits beside a worker: no right is left but, where there was one, that to end it. The kernel asks
    for that right, too, when the worker is to die with it.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _keep_capabilities(_CAP_KILL)


def confine(slot: Path | None, uid: int, memory_mib: int, file_bytes: int | None = None, room: Room = NO_ROOM) -> str:
    """Gives everything up, and returns the level reached, such as "uid+rlimits+landlock:7+seccomp".

    `memory_mib` is what the process may map beyond what it has mapped now; 0 is no limit. Afterwards the current
    folder is `slot`, which the new user may read even where a folder above is closed to it; with None no folder is
    left but the interpreter's own. `file_bytes` is how long a file that is open for writing may grow; without it none
    may but the one that takes what we print. `room` is what may be reached beyond the slot; an accelerator's driver
    maps far more than it uses, so with one `memory_mib` is left to the control group. Raises ConfineError.
    """
    os.chdir(slot or "/")
    level = []
    ruleset = _ruleset(slot, room)
    seccomp = _prepared_filter()
    if os.geteuid() == 0 and uid:
        closed = not _open_to_all(Path(sysconfig.get_path("stdlib")))
        _become(uid, keep_reading=ruleset is not None and closed, groups=sorted(room.groups))
        level.append("uid")
    _limit(0 if room.devices else memory_mib, file_bytes, room.cache_bytes)
    level.append("rlimits")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() == 0 and _keep_capabilities(0):
        level.append("nocaps")
    if ruleset is not None:
        landlock.restrict(ruleset)
        level.append(f"landlock:{landlock.abi()}")
    if seccomp is not None and _load(seccomp):
        level.append("seccomp")
    return "+".join(level)


def _become(uid: int, keep_reading: bool, groups: list[int]) -> None:
    """`keep_reading` is for an interpreter in a folder that is closed to others (such as /root): the right to read
    everything stays, and Landlock says what everything is. Only with Landlock, therefore.
    """
    if keep_reading:
        _prctl(_PR_SET_KEEPCAPS, 1)
    try:
        os.setgroups(groups)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise ConfineError(f"expected to become user {uid}, got {error}; the module is not loaded") from error
    if keep_reading and not _keep_capabilities(_CAP_DAC_READ_SEARCH):
        raise ConfineError(f"user {uid}: expected to keep the right to read alone; the module is not loaded")
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of user clears it


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def _limit(memory_mib: int, file_bytes: int | None, cache_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    printed = MAX_LOG_BYTES if any(stat.S_ISREG(os.fstat(fd).st_mode) for fd in (1, 2)) else 0
    written = max(printed, cache_bytes) if file_bytes is None else file_bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    # No RLIMIT_NPROC: it counts the threads of the whole user, and the runtime's threads would fail to start.
    if memory_mib:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = mapped + memory_mib * 1024 * 1024
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def memory_words() -> str:
    """The most that this process has mapped, and what it may map."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next((int(line.split()[1]) // 1024 for line in status if line.startswith("VmPeak:")), 0)
    most = f"limit {limit // 2**20} MiB" if limit != resource.RLIM_INFINITY else "no limit"
    return f"peak {peak} MiB mapped, {most}, libraries included"


def _ruleset(slot: Path | None, room: Room) -> int | None:
    if not landlock.abi():
        return None
    try:
        writable = [room.cache] if room.cache else []
        reached = [*room.devices, *room.shared, *room.cameras]
        read = [*readable(), *room.readable, *room.places]
        return landlock.open_rules([*([slot] if slot else ()), *read], writable, reached)
    except OSError as error:
        log.warning("landlock is not available: %s", error)
        return None


def readable() -> list[Path]:
    """The interpreter, the installed libraries and our own code; nothing of the agent's state."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [p for p in sys.path if p.endswith((".zip", "-packages", "lib-dynload"))]
    paths += [str(Path(sys.base_prefix) / "lib"), *_LIBRARIES, *_MACHINE]
    own = [str(Path(package.__file__ or "").parent) for package in (agent, modules, firmware_profiles)]
    return [Path(path) for path in dict.fromkeys([*paths, *own]) if Path(path) != Path("/")]


def _prepared_filter() -> object | None:
    """Built before anything is given up: the library is loaded from disk."""
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        log.warning("seccomp is not available: %s", error)
        return None
    rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    denied = pyseccomp.ERRNO(errno.EPERM)
    for name in _FORBIDDEN:
        _add(rules, denied, name)
    _add(rules, pyseccomp.ERRNO(errno.ENOSYS), "clone3")  # its flags lie in memory; libc falls back to clone
    _add(rules, denied, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, _CLONE_THREAD, 0))
    _add(rules, denied, "prlimit64", pyseccomp.Arg(0, pyseccomp.NE, 0))  # of others
    _add(rules, denied, "tgkill", pyseccomp.Arg(0, pyseccomp.NE, os.getpid()))
    rules.set_attr(pyseccomp.Attr.CTL_TSYNC, 1)
    return rules  # type: ignore[no-any-return]


def _add(rules: object, action: int, name: str, *arguments: object) -> None:
    """A system call that this machine or this libseccomp does not know cannot be called either."""
    try:
        rules.add_rule(action, name, *arguments)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        log.debug("seccomp: no rule for %s: %s", name, error)


def _load(rules: object) -> bool:
    try:
        rules.load()  # type: ignore[attr-defined]
    except (OSError, RuntimeError) as error:
        log.warning("seccomp is not available: %s", error)
        return False
    return True


def _keep_capabilities(kept: int) -> bool:
    """Effective and permitted are `kept` (of the first 32), nothing is inherited."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)
    return bool(ctypes.CDLL(None).capset(ctypes.byref(header), ctypes.byref(sets)) == 0)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        raise ConfineError(f"prctl {option}: expected success, got {errno.errorcode.get(ctypes.get_errno(), '?')}")
