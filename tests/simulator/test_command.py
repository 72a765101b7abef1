"""`mooring simulate` as its users run it: devices enrol by the API, lines of JSON, an end in order."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud_hub.config import HubPaths
from support.simulated import hub_with_module
from support.waiting import until

MOORING = str(Path(sys.executable).with_name("mooring"))
PATIENT_S = 120.0


class Command:
    """The process, and the lines that it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    def last(self, kind: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = [line[kind] for line in self.lines if line["kind"] == kind]
        return found[-1] if found else {}

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))


@asynccontextmanager
async def simulate(paths: HubPaths, *options: str) -> AsyncIterator[Command]:
    process = await asyncio.create_subprocess_exec(
        MOORING, "--context", str(paths.context), "simulate", "-o", "json", *options, stdout=asyncio.subprocess.PIPE
    )
    command = Command(process)
    reading = asyncio.create_task(command.read())
    try:
        yield command
        await asyncio.wait_for(reading, PATIENT_S)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        reading.cancel()
        await asyncio.wait([reading])


@pytest.mark.timeout(180)
async def test_devices_enrol_connect_and_leave_when_asked_and_come_back_from_their_file(tmp_path: Path) -> None:
    options = ("--state", str(tmp_path / "fleet.sqlite"), "--tag", "site=lab")
    async with hub_with_module(tmp_path / "hub") as (paths, client):
        async with simulate(paths, *options, "--devices", "20") as command:
            await until(lambda: command.last("look").get("reports", 0) >= 20, "the devices to report", PATIENT_S)
            command.process.send_signal(signal.SIGINT)
        assert command.process.returncode == 0
        assert command.last("summary")["devices"] == 20
        assert command.last("summary")["errors"] == {}
        names = {device.id for device in await client.devices("site=lab")}
        assert len(names) == 20

        async with simulate(paths, *options, "--for", "3") as again:
            pass
        assert again.process.returncode == 0
        assert again.last("summary")["connected"] == 20
        assert {device.id for device in await client.devices("site=lab")} == names


@pytest.mark.timeout(180)
async def test_a_profile_that_is_not_there_is_said_and_nothing_is_started(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        MOORING, "simulate", "--profile", str(tmp_path / "none.toml"), stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(process.communicate(), PATIENT_S)
    assert process.returncode == 1
    assert b"none.toml: No such file or directory; nothing was started" in said
