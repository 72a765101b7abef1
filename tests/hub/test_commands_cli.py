"""`mooring device logs|restart|diagnose`, `mooring command` and `mooring config` with a device that is never there."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import update
from typer.testing import CliRunner

from cloud_hub.claims import NewToken
from cloud_hub.config import HubPaths
from cloud_hub.operator.cli import app
from cloud_hub.operator.client import HubClient
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import commands
from modules.enrolment import EnrollAnswer, EnrollRequest
from support.devices import PROFILE, make_request
from support.hubs import running_hub
from support.waiting import until_async

DEVICE = "cam-001"
COMMAND = str(Path(sys.executable).with_name("mooring"))


@dataclass(frozen=True)
class Operator:
    """Types commands to a hub that runs in this process."""

    paths: HubPaths
    hub: HubClient

    @property
    def environment(self) -> dict[str, str]:
        return {"MOORING_CONTEXT": str(self.paths.context), "COLUMNS": "160"}

    async def run(self, *arguments: str, status: int = 0) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, list(arguments), env=self.environment)
        assert result.exit_code == status, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result.stderr if status else result.stdout

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "-o", "json"))


@pytest.fixture
async def operator(tmp_path: Path) -> AsyncIterator[Operator]:
    async with running_hub(tmp_path / "hub") as hub:
        token = await hub.create_token(NewToken(device=DEVICE))
        request = EnrollRequest(token, DEVICE, make_request(DEVICE, ec.generate_private_key(ec.SECP256R1())), PROFILE)
        await hub._http.ask(EnrollAnswer, "POST", "/enroll", request)
        yield Operator(HubPaths(tmp_path / "hub"), hub)


async def test_an_interrupt_ends_the_waiting_and_leaves_the_command(operator: Operator) -> None:
    waiting = await asyncio.create_subprocess_exec(
        COMMAND, "device", "logs", DEVICE, env={**operator.environment, "PATH": ""},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:

        async def asked() -> bool:
            return bool(await operator.hub.commands())

        await until_async(asked, "the command at the hub", 60.0)
        (made,) = await operator.hub.commands()
        waiting.send_signal(signal.SIGINT)
        out, said = await asyncio.wait_for(waiting.communicate(), 60)
    finally:
        if waiting.returncode is None:
            waiting.kill()
            await waiting.wait()
    assert waiting.returncode == 130
    assert out == b""
    if said:  # it may have been interrupted before it had the hub's answer
        assert f"command {made.id} is still pending".encode() in said
    assert (await operator.hub.command(made.id)).state == "pending"


async def test_commands_are_asked_listed_shown_and_cancelled(operator: Operator) -> None:
    made = await operator.json("device", "restart", DEVICE, "digits", "--no-wait")
    assert (made["kind"], made["module"], made["state"]) == ("restart", "digits", "pending")
    asked = await operator.json("command", "ask", "diagnostics", "--target", "all", "--expires", "2h")
    assert asked["commands"][0]["asked"] == {"log_lines": 1000}
    shown = await operator.run("command", "list", "--device", DEVICE)
    assert made["id"] in shown
    assert asked["batch"] in await operator.run("command", "show", asked["commands"][0]["id"])
    gone = await operator.json("command", "cancel", made["id"])
    assert gone["state"] == "cancelled"
    assert "has ended (cancelled)" in await operator.run("command", "cancel", made["id"], status=1)
    assert "has brought nothing" in await operator.run("command", "result", made["id"], status=1)
    assert [one["id"] for one in await operator.json("command", "list", "--state", "pending")] == [
        asked["commands"][0]["id"]
    ]
    assert "say which module, or --agent" in await operator.run("device", "restart", DEVICE, status=1)
    assert "no device cam-9" in await operator.run("device", "diagnose", "cam-9", status=1)
    assert "expected a time such as" in await operator.run("device", "logs", DEVICE, "--since", "long", status=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "the agent has said nothing\n"),
        (("--module", "digits", "--since", "1h"), "digits has said nothing in the last 1h\n"),
        (
            ("--module", "digits", "--since", "2h", "--level", "error"),
            "digits has said nothing of level error or above in the last 2h\n",
        ),
    ],
)
async def test_a_log_in_which_nothing_fits_is_said_to_be_silent(
    operator: Operator, options: tuple[str, ...], words: str
) -> None:
    arguments = ["device", "logs", DEVICE, *options]
    asking = asyncio.create_task(asyncio.to_thread(CliRunner().invoke, app, arguments, env=operator.environment))

    async def asked() -> bool:
        return bool(await operator.hub.commands())

    await until_async(asked, "the command at the hub", 60.0)
    store = await Store.open(operator.paths.database_url, migrate=False)
    async with store.write() as connection:  # as the device's answer leaves it
        await connection.execute(update(commands).values(state="done", ended_at=1.0))
    await store.close()
    result = await asyncio.wait_for(asking, 60)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith(words)


async def test_what_is_wrong_with_a_configuration_is_said_before_anything_is_sent(
    operator: Operator, tmp_path: Path
) -> None:
    assert "no module digits" in await operator.run("config", "set", "digits", "a=1", status=1)
    assert "no module digits" in await operator.run("config", "show", "digits", status=1)
    assert "say what to change" in await operator.run("config", "set", "digits", status=1)
    assert "expected NAME=VALUE" in await operator.run("config", "set", "digits", "threshold", status=2)
    assert "has another value already" in await operator.run("config", "set", "digits", "a=1", "a.b=2", status=2)
    wrong = tmp_path / "wrong.json"
    wrong.write_text("[1]")
    assert "expected names with values" in await operator.run("config", "set", "d", "--file", str(wrong), status=1)
    both = await operator.run("config", "set", "d", "a=1", "--group", "g", "--device", DEVICE, status=2)
    assert "a target or a device" in both
