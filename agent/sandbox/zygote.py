"""The process that workers are forked from: `python -m agent.sandbox.zygote FD`. Imports the libraries once for all.

A forked worker is there in milliseconds and shares the libraries' pages with its siblings; what it shares, too, is
where they lie in memory (docs/understand/sandbox.md). Forks while it has one thread and no model, never later. It is
the parent of the workers: they die with it, it dies with the agent. Started by `agent.sandbox.nursery`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import importlib
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from agent.sandbox.birth import MAX_BYTES, MAX_FILES, Answer, Born, Ended, Fork, NotBorn, Ready, encode, orders
from agent.sandbox.confine import die_with_parent, drop_rights
from agent.sandbox.worker import quiet_libraries, work

IN_PLACE_DEADLINE_S = 10.0
_PLACED = b"."
_LIBRARIES = ("agent.sandbox.session", "agent.backends.onnx", "agent.backends.script", "pyseccomp")
# Source: linux/sched.h.
_NAMESPACES = {"ns/mnt": 0x00020000, "ns/cgroup": 0x02000000, "ns/uts": 0x04000000, "ns/ipc": 0x08000000,
               "ns/pid": 0x20000000, "ns/net": 0x40000000, "ns/user": 0x10000000}  # fmt: skip


class Birth(msgspec.Struct, frozen=True):
    """What a child was born with: files, the numbers they are to have, who to enter, and where to say that it is so."""

    files: tuple[int, ...]
    numbers: tuple[int, ...]
    enter: int
    said: int
    parent: int


class Zygote:
    """Forks on order, tells of every end, reaps when told to."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, int] = {}  # pidfd -> pid
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> Birth | None:
        """Until the agent is gone: None. In a child: what it was born with."""
        while True:
            for handle, _ in self._poll.poll():
                if handle != self._control.fileno():
                    self._tell(handle)
                    continue
                data, files, _, _ = socket.recv_fds(self._control, MAX_BYTES, MAX_FILES)
                if not data:
                    return None
                order = orders.decode(data)
                if not isinstance(order, Fork):
                    self._reap(order.pid)
                elif birth := self._fork(order, files):
                    return birth

    def _fork(self, order: Fork, files: Sequence[int]) -> Birth | None:
        ours, theirs = os.pipe()
        enter = files[len(order.numbers)] if order.enter else -1
        birth = Birth(tuple(files[: len(order.numbers)]), order.numbers, enter, theirs, os.getpid())
        try:
            pid = os.fork()
        except OSError as error:
            os.close(theirs)
            self._answer(NotBorn(f"cannot fork: {error.strerror}"))
            return None
        else:
            if pid == 0:
                return birth
            os.close(theirs)
            self._born(pid, _said(ours))
            return None
        finally:
            if os.getpid() == birth.parent:
                for handle in (ours, *files):
                    os.close(handle)

    def _born(self, pid: int, why_not: str) -> None:
        if why_not:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            self._answer(NotBorn(why_not))
            return
        handle = os.pidfd_open(pid)
        self._children[handle] = pid
        self._poll.register(handle, select.POLLIN)
        socket.send_fds(self._control, [encode(Born(pid))], [handle])

    def _tell(self, handle: int) -> None:
        self._poll.unregister(handle)
        pid = self._children.pop(handle)
        os.close(handle)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if ended is None:
            return
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        self._answer(Ended(pid, code))

    def _reap(self, pid: int) -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    def _answer(self, answer: Answer) -> None:
        self._control.send(encode(answer))


def _said(pipe: int) -> str:
    """Why the child is not in place; empty where it is."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    if not waiting.poll(IN_PLACE_DEADLINE_S * 1000):
        return f"not in place within {IN_PLACE_DEADLINE_S:g} s"
    said = os.read(pipe, MAX_BYTES)
    return "" if said == _PLACED else said.decode(errors="replace") or "ended before it was in place"


def become(birth: Birth) -> NoReturn:
    """From a copy of the zygote to a worker."""
    said = birth.said
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        die_with_parent(birth.parent)
        files, said, enter = _kept(birth)
        if enter >= 0:
            _enter(enter)
            die_with_parent(birth.parent)  # another user namespace has made the kernel forget it
            _stay_outside((*files, said))
        os.write(said, _PLACED)
        os.close(said)
        _place(files, birth.numbers)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(said, (str(error) or type(error).__name__).encode()[:500])
        os._exit(1)
    if generator := sys.modules.get("numpy.random"):
        generator.seed()  # siblings would draw the same numbers
    work(birth.numbers[0])


def _kept(birth: Birth) -> tuple[list[int], int, int]:
    """What was given, moved above every number that is wanted; all else that the zygote had open is closed."""
    given = [*birth.files, birth.said, *([birth.enter] if birth.enter >= 0 else [])]
    floor = max(*birth.numbers, *given) + 1
    moved = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, floor) for handle in given]
    os.closerange(3, floor)
    files = moved[: len(birth.files)]
    return files, moved[len(files)], moved[-1] if birth.enter >= 0 else -1


def _place(files: Sequence[int], numbers: Sequence[int]) -> None:
    """Every file to its number, and what is printed to the second of them. Nothing else stays open."""
    for handle, number in zip(files, numbers, strict=True):
        os.dup2(handle, number, inheritable=False)
    for number in (1, 2):
        os.dup2(numbers[1], number)
    os.close(numbers[1])
    for handle in files:
        os.close(handle)


def _enter(process: int) -> None:
    """The namespaces of the process behind a pidfd, all of them that are not ours already. Raises OSError."""
    about = Path(f"/proc/self/fdinfo/{process}").read_text().splitlines()
    number = next(line.split()[1] for line in about if line.startswith("Pid:"))
    kinds = 0
    for name, flag in _NAMESPACES.items():
        with contextlib.suppress(FileNotFoundError):  # of a kernel without that kind
            if os.stat(f"/proc/{number}/{name}").st_ino != os.stat(f"/proc/self/{name}").st_ino:
                kinds |= flag
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(ctypes.c_int(process), ctypes.c_int(kinds)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {errno.errorcode.get(code, code)}")
    os.close(process)
    os.chdir("/")


def _stay_outside(files: Sequence[int]) -> None:
    """Returns in a child, for only a child is in the new process namespace; the rest of us hands on how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        die_with_parent(0)
        if select.select([read], [], [], 0)[0]:  # it went before we could ask
            os._exit(1)
        os.close(read)
        return
    for handle in (*files, read):
        os.close(handle)
    drop_rights()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _preload() -> str:
    """Why workers must not be forked from here after all; empty where they may."""
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError, OSError, RuntimeError):  # what is missing here, a worker will tell
            importlib.import_module(name)
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        return f"the libraries have started {len(threads) - 1} threads"
    return ""


def main(arguments: list[str]) -> None:
    die_with_parent(os.getppid())
    quiet_libraries()
    control = socket.socket(fileno=int(arguments[0]))
    before = set(os.listdir("/proc/self/fd"))
    refused = _preload()
    if more := set(os.listdir("/proc/self/fd")) - before:
        refused = refused or f"the libraries keep {len(more)} files open"
    gc.collect()
    gc.freeze()  # the collector would write into every page, and make it the child's own
    control.send(encode(Ready(refused)))
    birth = None if refused else Zygote(control).run()
    if birth is not None:
        control.detach()  # its number may be another file's by now
        become(birth)


if __name__ == "__main__":
    main(sys.argv[1:])
