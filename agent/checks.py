"""One finding of the doctor, and the short-lived processes that it asks. Called by the files of `agent.doctor`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Literal

import msgspec

from agent.sandbox.ending import in_words
from agent.sandbox.environment import worker_environment

TRIAL_TIMEOUT_S = 60.0  # an accelerator's libraries are gigabytes, on a cold disk


class Check(msgspec.Struct, frozen=True):
    """`warn` is worth a look, `fail` keeps the agent from its work. `hint` is what to do about it."""

    name: str
    result: Literal["ok", "warn", "fail"]
    text: str
    hint: str = ""


def asked(program: tuple[str, ...], timeout_s: float = TRIAL_TIMEOUT_S) -> tuple[bool, str]:
    """Whether the Python program ran, and its last line, or what it complained of last."""
    try:
        run = subprocess.run(
            [sys.executable, "-P", *program],
            env=worker_environment(os.environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return False, str(error)
    if run.returncode < 0:
        crashed = run.returncode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGILL, -signal.SIGBUS)
        return False, f"it ended with {in_words(run.returncode)}" + (": a library does not fit" if crashed else "")
    said = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
    return run.returncode == 0, said[-1] if said else f"exit status {run.returncode}"
