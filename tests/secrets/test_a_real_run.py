"""A hub, its broker and an agent as real processes, at their most talkative: no secret of theirs shows anywhere.

Looked at: everything that they print and log, the command line and environment of every process of theirs, what their
commands answer, what is on the disk in files that others may read, and the API's errors.
"""

import base64
import re
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.report import read_status
from cloud_hub.config import HubPaths
from cloud_hub.operator.demo.processes import ProcessFailed, Service, command, once, until

DEADLINE_S = 40.0


@dataclass
class Run:
    """The processes, their folders, and every secret that must not show."""

    folder: Path
    hub: HubPaths
    state: Path
    services: list[Service] = field(default_factory=list)
    secrets: dict[str, bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def remember(self) -> None:
        """Every private key (each line of its PEM) and the operator's token."""
        for path in (*self.hub.root.rglob("*.pem"), *self.hub.root.rglob("*.key"), *self.state.rglob("*.key")):
            if path.name != "crl.pem":
                for number, line in enumerate(_body(path.read_bytes())):
                    self.secrets[f"{path.name}, line {number}"] = line
        self.secrets["operator token"] = self.hub.operator_token.read_bytes().strip()

    def shown(self, where: str, data: bytes) -> list[str]:
        return [f"{name} in {where}" for name, secret in self.secrets.items() if secret in data]


def _body(pem: bytes) -> Iterator[bytes]:
    inside = b"".join(re.findall(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)-----END", pem, re.DOTALL))
    yield from (line for line in inside.split() if len(line) > 20)
    if inside:
        yield base64.b64decode(inside)[-32:]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    run = Run(tmp_path, HubPaths(tmp_path / "hub"), tmp_path / "state")
    run.said.append(
        await once([command("mooring-hub"), "init", str(run.hub.root), "--dev", "--api-port", "0", "--mqtt-port", "0"])
    )
    ready = tmp_path / "ready.json"
    serve = [command("mooring-hub"), "serve", str(run.hub.root), "--ready-file", str(ready), "--log-level", "debug"]
    run.services.append(Service("hub", serve, tmp_path / "hub.log"))
    try:
        await run.services[0].start()
        await until("the hub is ready", ready.exists, DEADLINE_S, run.services[0])
        yield run
    finally:
        for service in reversed(run.services):
            await service.stop()


async def enrol(run: Run, token: str, device: str = "cam-1") -> str:
    url = tomllib.loads(run.hub.context.read_text())["url"]
    file = run.folder / "claim.txt"
    file.write_text(token)
    file.chmod(0o600)
    words = ["enroll", "--hub", url, "--token-file", str(file), "--device-id", device, "--state", str(run.state)]
    try:
        return await once([command("mooring-agent"), *words])
    finally:
        file.unlink()


async def start_agent(run: Run) -> None:
    words = [command("mooring-agent"), "run", "--state", str(run.state), "--log-level", "debug"]
    agent = Service("agent", words, run.folder / "agent.log")
    run.services.append(agent)
    await agent.start()

    def connected() -> bool:
        status = read_status(run.state / "status.json")
        return status is not None and status.link.connected

    await until("the agent is connected", connected, DEADLINE_S, agent)


def processes(run: Run) -> dict[int, tuple[bytes, bytes]]:
    """Command line and environment of the services and of all that they have started, as root or their user sees it."""
    ours, found = {service.pid for service in run.services}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            session = int((path / "stat").read_text().rsplit(")", 1)[1].split()[3])
            line = (path / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue  # gone meanwhile
        if session in ours or str(run.folder).encode() in line:
            try:
                environment = (path / "environ").read_bytes()
            except OSError:
                environment = b""  # closed even to us, which is as it should be
            found[int(path.name)] = (line, environment)
    return found


async def test_no_secret_shows_in_logs_processes_or_answers(run: Run) -> None:
    context = ["--context", str(run.hub.context)]
    token = (await once([command("mooring"), *context, "device", "token", "--device", "cam-1"])).split()[0]
    run.said.append(await enrol(run, token))
    run.secrets["claim token"] = token.split(".")[1].encode()
    await start_agent(run)
    run.remember()
    seen = processes(run)
    assert len(seen) >= 3, "the hub, its broker and the agent"
    for words in (["device", "list"], ["device", "show", "cam-1"], ["events", "list"], ["--help"]):
        run.said.append(await once([command("mooring"), *context, *words]))
    run.said.append(await once([command("mooring-agent"), "status", "--state", str(run.state)]))
    run.said.append(await once([command("mooring-hub"), "doctor", str(run.hub.root)]))
    for service in reversed(run.services):
        await service.stop()
    shown: list[str] = []
    for number, (line, environment) in seen.items():
        shown += run.shown(f"the command line of {number}", line) + run.shown(
            f"the environment of {number}", environment
        )
    for said in run.said:
        shown += run.shown("what a command said", said.encode())
    logs = [run.folder / "hub.log", run.folder / "agent.log", run.hub.broker / "mosquitto.log"]
    for path in logs:
        assert path.stat().st_size > 0
        shown += run.shown(path.name, path.read_bytes())
    for path in (path for path in run.folder.rglob("*") if path.is_file() and path.stat().st_mode & 0o044):
        shown += run.shown(f"{path.relative_to(run.folder)}, which others may read", path.read_bytes())
    assert shown == []
    assert len(run.secrets) > 20


async def test_the_memory_of_hub_and_agent_is_closed_and_leaves_no_core(run: Run) -> None:
    context = ["--context", str(run.hub.context)]
    token = (await once([command("mooring"), *context, "device", "token"])).split()[0]
    await enrol(run, token, "cam-2")
    await start_agent(run)
    for service in run.services:
        limits = Path(f"/proc/{service.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0", limits), service.name
        # A process whose memory is closed belongs to root in /proc, whoever runs it.
        assert Path(f"/proc/{service.pid}/environ").stat().st_uid == 0


async def test_a_wrong_token_is_refused_without_being_repeated(run: Run) -> None:
    context = ["--context", str(run.hub.context)]
    token = (await once([command("mooring"), *context, "device", "token"])).split()[0]
    head, secret, pin = token.split(".")
    wrong = secret[::-1]
    with pytest.raises(ProcessFailed) as caught:
        await enrol(run, f"{head}.{wrong}.{pin}")
    assert wrong not in str(caught.value)
    assert pin not in (run.folder / "hub.log").read_text()
    assert wrong not in (run.folder / "hub.log").read_text()
