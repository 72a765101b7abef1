"""Stands between a training command and who asked for it: `python -m cloud_hub.retraining.guard DEADLINE_S -- COMMAND`.

The command and all it starts are one process group. They end when the deadline has passed (exit status 124) and when
this process's standard input is closed (125): by whoever asked, or because that one is no more, killed or not. First
they are asked to, GRACE_S later they have to. Imports nothing of the hub. Started by `executing`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Final

GRACE_S: Final = 5.0
TOO_LONG: Final = 124
LET_GO: Final = 125
NOT_STARTED: Final = 126


def main(arguments: list[str]) -> int:
    deadline = time.monotonic() + float(arguments[0])
    try:
        process = subprocess.Popen(
            arguments[2:], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        sys.stdout.write(f"{arguments[2]}: {error.strerror or error}\n")
        return NOT_STARTED
    let_go, ended = threading.Event(), threading.Event()
    threading.Thread(target=_watch, args=(let_go, ended), daemon=True).start()
    threading.Thread(target=_await, args=(process, ended), daemon=True).start()
    in_time = ended.wait(max(0.0, deadline - time.monotonic()))
    if let_go.is_set() or not in_time:
        _end(process.pid, process)
        return LET_GO if let_go.is_set() else TOO_LONG
    status = process.wait()
    _kill(process.pid, signal.SIGKILL)  # what it left behind
    return status if status >= 0 else 128 - status


def _watch(let_go: threading.Event, ended: threading.Event) -> None:
    """Until standard input is closed. Nothing is ever said there."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    let_go.set()
    ended.set()


def _await(process: subprocess.Popen[bytes], ended: threading.Event) -> None:
    process.wait()
    ended.set()


def _end(group: int, process: subprocess.Popen[bytes]) -> None:
    _kill(group, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _kill(group, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _kill(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
