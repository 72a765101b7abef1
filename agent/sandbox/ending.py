"""How a child process ended: waited for without a thread, and said in words. For workers and decoders of patches."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess


async def reap(process: subprocess.Popen[bytes]) -> int:
    """The exit code, waited for without a thread: a pidfd is readable once the process has ended."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    handle = os.pidfd_open(process.pid)
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return process.wait()


def in_words(code: int | None) -> str:
    if code is None:
        return "no exit code yet"
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
