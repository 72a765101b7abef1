"""The command `mooring-agent`, as a user calls it, on a state directory with and without an agent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from agent import __version__
from agent.cli import NOT_RUNNING, build_parser
from agent.config import AgentConfig, StatePaths
from agent.doctor import _identity
from agent.identity import Identity, make_key
from support.agents import AgentProcess, enrolled
from support.mosquitto import Mosquitto


def mooring_agent(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
async def agent(agent_config: AgentConfig, state_dir: StatePaths, broker: Mosquitto) -> AsyncIterator[AgentProcess]:
    """An enrolled agent without modules, running and connected."""
    enrolled(agent_config, state_dir, broker)
    process = AgentProcess(state_dir)
    await process.start()

    def is_connected() -> bool:
        status = process.status()
        return status is not None and status.link.connected

    await process.until(is_connected, "the connection")
    yield process
    await process.stop()


def test_version_and_help_are_answered() -> None:
    assert mooring_agent("--version").stdout.strip() == f"mooring-agent {__version__}"
    words = mooring_agent("--help").stdout
    assert all(command in words for command in ("enroll", "run", "status", "doctor"))


def test_a_command_that_is_none_is_not_understood() -> None:
    assert mooring_agent("fly").returncode == 2
    assert mooring_agent().returncode == 2


def test_the_state_directory_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORING_STATE", "/elsewhere")
    assert str(build_parser().parse_args(["status"]).state) == "/elsewhere"


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_device_that_is_not_enrolled_is_told_so(command: str, state_dir: StatePaths) -> None:
    run = mooring_agent(command, "--state", str(state_dir.root))
    assert run.returncode == 1
    assert "not enrolled yet" in run.stderr + run.stdout
    assert "Traceback" not in run.stderr


def test_a_token_that_is_none_fails_in_one_line_and_is_not_repeated(state_dir: StatePaths) -> None:
    run = mooring_agent(
        "enroll", "--hub", "https://localhost:1", "--token", "secret-words", "--device-id", "cam-17",
        "--state", str(state_dir.root),
    )  # fmt: skip
    assert run.returncode == 1
    assert run.stderr.startswith("mooring-agent: ")
    assert len(run.stderr.splitlines()) == 1
    assert "secret-words" not in run.stderr


def test_a_token_file_that_is_missing_is_named(state_dir: StatePaths) -> None:
    run = mooring_agent("enroll", "--hub", "https://localhost:1", "--token-file", "/nowhere", "--device-id", "cam-17")
    assert run.returncode == 1
    assert "/nowhere" in run.stderr


def test_status_without_an_agent_says_so_with_its_own_exit_status(state_dir: StatePaths) -> None:
    run = mooring_agent("status", MOORING_STATE=str(state_dir.root))
    assert (run.returncode, run.stdout.split()) == (NOT_RUNNING, ["agent", "not", "running"])


async def test_status_of_a_running_agent_is_for_people_and_for_programs(agent: AgentProcess) -> None:
    state = str(agent.paths.root)
    words = await asyncio.to_thread(mooring_agent, "status", "--state", state)
    assert words.returncode == 0
    assert "connected since" in words.stdout
    fields = json.loads((await asyncio.to_thread(mooring_agent, "status", "--json", "--state", state)).stdout)
    assert fields["running"] is True
    assert fields["report"]["device"] == "cam-17"
    assert fields["link"]["connected"] is True


async def test_doctor_finds_an_enrolled_device_well(agent: AgentProcess) -> None:
    run = await asyncio.to_thread(mooring_agent, "doctor", "--json", "--state", str(agent.paths.root))
    checks = {check["name"]: check for check in json.loads(run.stdout)}
    assert "certificate valid until" in checks["identity"]["text"]
    assert checks["identity"]["result"] != "fail"
    assert checks["broker"]["result"] == "ok"
    assert "CPUExecutionProvider" in checks["backend onnx"]["text"]
    assert {"clock", "disk", "memory", "confinement", "endpoints", "backend script"} < checks.keys()
    assert run.returncode == 0


async def test_doctor_says_when_the_broker_is_gone(agent: AgentProcess, broker: Mosquitto) -> None:
    await broker.kill()
    run = await asyncio.to_thread(mooring_agent, "doctor", "--state", str(agent.paths.root))
    assert run.returncode == 1
    assert any(line.startswith("fail  broker") for line in run.stdout.splitlines())


@pytest.mark.parametrize(("days", "result"), [(-1, "fail"), (3, "warn"), (60, "ok")])
def test_doctor_looks_at_the_end_of_the_certificate(days: int, result: str, state_dir: StatePaths) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ends = now + timedelta(days=days)
    identity = Identity("cam-17", make_key(), ends, state_dir, not_before=ends - timedelta(days=90))
    assert _identity(identity, now.timestamp()).result == result
