"""The launcher as a process: what it becomes, what it writes down before, and what ends a release that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.release.pointer import COMPLETE, FOLDER, TRIAL_BOOTS, Pointer, load, save, settled, tried

RELEASE = "c" * 32
# In the place of a release's interpreter: says how it was called, and perhaps never ends.
TELLS = '#!/bin/sh\necho "$MOORING_RELEASE $PYTHONPATH $@"\n'
HANGS = TELLS + "exec sleep 600\n"


def a_release(state: Path, script: str) -> None:
    folder = state / FOLDER / RELEASE
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text(script)
    (folder / "bin" / "python").chmod(0o755)
    (folder / COMPLETE).touch()


def run_agent(state: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "agent.cli", "run", "--state", str(state)]
    known = {name: value for name, value in os.environ.items() if not name.startswith("MOORING_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=50, env={**known, **environment})


def test_the_committed_release_is_what_runs_with_the_same_arguments(tmp_path: Path) -> None:
    a_release(tmp_path, TELLS)
    save(tmp_path, settled(Pointer(), RELEASE))
    said = run_agent(tmp_path, PYTHONPATH="/of/another/agent")
    assert said.stdout == f"{RELEASE}  -P -m agent.cli run --state {tmp_path}\n"
    assert load(tmp_path).boots == 1


def test_a_trial_that_hangs_is_ended_and_given_up_after_its_last_start(tmp_path: Path) -> None:
    a_release(tmp_path, HANGS)
    save(tmp_path, tried(Pointer(), RELEASE, 1, online=True))
    for start in range(1, TRIAL_BOOTS + 1):
        assert run_agent(tmp_path).returncode == -signal.SIGALRM
        assert load(tmp_path).boots == start
    said = run_agent(tmp_path)  # the installed agent, which nobody has enrolled
    assert (said.returncode, "not enrolled" in said.stderr) == (1, True)
    assert (load(tmp_path).trial, load(tmp_path).failed) == ("", RELEASE)


@pytest.mark.parametrize("missing", [COMPLETE, "bin/python"])
def test_a_release_that_is_not_whole_is_not_started(tmp_path: Path, missing: str) -> None:
    a_release(tmp_path, TELLS)
    (tmp_path / FOLDER / RELEASE / missing).unlink()
    save(tmp_path, settled(Pointer(), RELEASE))
    assert "not enrolled" in run_agent(tmp_path).stderr
