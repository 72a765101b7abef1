"""The agent's side of the decoder: one process per patch, which gets three open files and nothing else.

The patch is not trusted: nobody signed it. So the process that reads it has no path it could open, no socket, no time
without end, and cannot write more than the signed size; what it makes counts only once its digest is the signed one,
which is the caller's check. Called by the fetcher; the other side is `agent.patching.child`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from agent.errors import PatchFailed
from agent.sandbox.ending import in_words, reap
from agent.sandbox.environment import worker_environment

# Below the users that workers get (serving.uid_first): no process of a module may touch the decoder, nor the reverse.
PATCH_UID: Final = 60_799
MEMORY_MIB: Final = 64  # of the whole process, whatever the size of the model
EXIT_DEADLINE_S: Final = 5.0  # from SIGKILL to reaped; only a process stuck in the kernel takes longer
MAX_WORDS: Final = 500  # of what the child says about a failure

# No current folder on the import path.
CHILD: Final = (sys.executable, "-P", "-m", "agent.patching.child")
# One thread: each more would map memory of its own.
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")


async def rebuild(
    base: Path, patch: Path, out: Path, size: int, deadline_s: float, uid: int = 0, program: tuple[str, ...] = CHILD
) -> None:
    """Writes `size` bytes to `out`, which is made anew; it is neither synced nor verified.

    `uid` is the user that the process becomes (0: it stays who it is). Raises PatchFailed, also when it was not done
    after `deadline_s`; then, and when cancelled, the process is gone and there is no `out`. Only tests give another
    `program`.
    """
    done = False
    try:
        with ExitStack() as files:
            handles = _opened(files, base, patch, out)
            process, words = _started(files, program, handles, size, uid, deadline_s)
            code = await _ended(process, deadline_s, patch)
            if code != 0:
                raise PatchFailed(f"patch {patch.name}: {_said(words) or f'the process ended with {in_words(code)}'}")
            if (got := os.fstat(handles[2]).st_size) != size:
                raise PatchFailed(f"patch {patch.name}: expected {size} bytes, it made {got}")
        done = True
    finally:
        if not done:
            out.unlink(missing_ok=True)


def _opened(files: ExitStack, base: Path, patch: Path, out: Path) -> tuple[int, int, int]:
    out.unlink(missing_ok=True)  # what a power cut left of an earlier try
    handles = []
    try:
        for path, flags in (
            (base, os.O_RDONLY),
            (patch, os.O_RDONLY),
            (out, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
        ):
            handles.append(os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
            files.callback(os.close, handles[-1])
    except OSError as error:
        raise PatchFailed(f"patch {patch.name}: {error}") from error
    return handles[0], handles[1], handles[2]


def _started(
    files: ExitStack, program: tuple[str, ...], handles: tuple[int, int, int], size: int, uid: int, deadline_s: float
) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and where its last words can be read: what the pipe does not hold, it waits to say, in vain."""
    words, into = os.pipe()
    files.callback(os.close, words)
    os.set_blocking(words, False)
    arguments = (*handles, size, uid, MEMORY_MIB, int(deadline_s) + 1, os.getpid())
    try:
        process = subprocess.Popen(
            [*program, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=into,
            pass_fds=handles,
            env=_environment(os.environ),
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise PatchFailed(f"cannot start a process to decode a patch: {error}") from error
    finally:
        os.close(into)
    return process, words


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    return {**worker_environment(ours), **_ONE_THREAD, "PYTHONDONTWRITEBYTECODE": "1"}


async def _ended(process: subprocess.Popen[bytes], deadline_s: float, patch: Path) -> int:
    """The exit code. However this is left, the process is dead, and reaped unless the kernel holds it."""
    reaping = asyncio.create_task(reap(process), name=f"patch-{process.pid}")
    try:
        async with asyncio.timeout(deadline_s):
            return await asyncio.shield(reaping)
    except TimeoutError:
        text = f"patch {patch.name}: the file was not made after {deadline_s:g} s; the process was killed"
        raise PatchFailed(text) from None
    finally:
        if not reaping.done():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait({reaping}, timeout=EXIT_DEADLINE_S)


def _said(words: int) -> str:
    with suppress(BlockingIOError):
        return os.read(words, 4 * MAX_WORDS).decode(errors="replace").strip()[:MAX_WORDS]
    return ""
