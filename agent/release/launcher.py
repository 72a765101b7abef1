"""The first thing that `mooring-agent run` does: make way for the release that shall run.

The agent that was installed with the system never changes, and this file of it decides at every start. It replaces the
process (exec), so that the service manager sees one and the same; nothing of it stays in memory. A release on trial
runs under an alarm of the kernel, which outlives the exec: one that hangs is ended, the service manager starts again,
and a trial that ended too often is given up here. Called by `agent.cli`.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

from agent.release.pointer import COMPLETE, FOLDER, load, next_start, save

RELEASE = "MOORING_RELEASE"  # the release that this process is; "installed" for the one that was installed
INSTALLED = "installed"
_PYTHON = "MOORING_INSTALLED_PYTHON"
_PACKAGES = "MOORING_INSTALLED_PACKAGES"
_PATH = "MOORING_INSTALLED_PYTHONPATH"  # put aside, because it would stand before a release's own packages


def launch(state: Path) -> None:
    """Returns when the agent that shall run is this one; else this process becomes the other. Raises OSError."""
    if os.environ.get(RELEASE):
        return
    pointer = load(state)
    after, release = next_start(pointer, lambda release: is_complete(state, release))
    if after != pointer:
        save(state, after)
    os.environ[_PYTHON] = sys.executable
    os.environ[_PACKAGES] = os.pathsep.join(installed_packages())
    os.environ[RELEASE] = release or INSTALLED
    if not release:
        return
    if "PYTHONPATH" in os.environ:
        os.environ[_PATH] = os.environ.pop("PYTHONPATH")
    if after.trial:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(max(1, after.trial_s))
    _become(python_of(state, release))


def start_again() -> NoReturn:
    """Becomes the launcher of the installed agent, which decides anew. Raises OSError."""
    python = os.environ.get(_PYTHON, sys.executable)
    for name in (RELEASE, _PYTHON, _PACKAGES):
        os.environ.pop(name, None)
    if _PATH in os.environ:
        os.environ["PYTHONPATH"] = os.environ.pop(_PATH)
    signal.alarm(0)
    _become(python)


def running() -> str:
    """The release that this process is; empty for the installed agent."""
    release = os.environ.get(RELEASE, INSTALLED)
    return "" if release == INSTALLED else release


def installed_packages() -> list[str]:
    """Where the installed agent's packages lie, from within any release."""
    known = os.environ.get(_PACKAGES)
    if known:
        return known.split(os.pathsep)
    extra = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return list(dict.fromkeys([*extra, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))


def is_complete(state: Path, release: str) -> bool:
    folder = state / FOLDER / release
    return bool(release) and (folder / COMPLETE).is_file() and python_of(state, release).exists()


def python_of(state: Path, release: str) -> Path:
    return state / FOLDER / release / "bin" / "python"


def _become(python: Path | str) -> NoReturn:
    os.execv(python, [str(python), "-P", "-m", "agent.cli", *sys.argv[1:]])  # noqa: S606 - no shell, our own interpreter
