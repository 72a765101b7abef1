"""Identity for life, with real agents, a real hub and a real broker: renewal, power cuts in it, and the way back in."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from agent.config import AgentConfig, RenewalLimits, ReportLimits, StatePaths
from agent.enrol import enrol
from agent.errors import EnrolError
from agent.identity import Identity
from cloud_hub.claims import NewToken
from cloud_hub.operator.client import HubClient
from support.agents import AgentProcess
from support.edge import SERVING, UPDATE
from support.hubs import running_hub
from support.links import QUICK
from support.waiting import until, until_async

pytestmark = pytest.mark.asyncio(loop_scope="module")
PROFILE = "generic-x86_64"
LIFE_S = 60.0
SHORT_S = 5.0
# Due some seconds after it was given out: late enough for the hub, and early enough for a test.
EARLY = RenewalLimits(retry_first_s=0.2, retry_ceiling_s=1.0, offline_s=20.0, connect_s=10.0, due_at=0.2)
MOMENTS = ("key", "certificate", "connected", "swapping", "swapped")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HubClient]:
    folder = tmp_path_factory.mktemp("identity") / "hub"
    async with running_hub(folder, certificate_days=LIFE_S / 86_400) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty_hub(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HubClient]:
    """Its certificates end before a renewal is thought of."""
    folder = tmp_path_factory.mktemp("hasty") / "hub"
    async with running_hub(folder, certificate_days=SHORT_S / 86_400) as client:
        yield client


async def enrolled(hub: HubClient, folder: Path, device: str, **changed: object) -> AgentProcess:
    """An agent that is enrolled and not started."""
    paths = StatePaths(folder / "state")
    token = await hub.create_token(NewToken(device=device))
    config = await enrol(paths, hub.context.url, token, device=device, profile=PROFILE)
    limits = {"link": QUICK, "serving": SERVING, "update": UPDATE, "report": ReportLimits(debounce_s=0.02)}
    config = msgspec.structs.replace(config, **(limits | {"renewal": EARLY} | changed))
    paths.config.write_text(config.to_toml())
    return AgentProcess(paths)


async def happened(hub: HubClient, kind: str, device: str) -> bool:
    return bool(await hub.events(kind, device))


async def until_event(hub: HubClient, kind: str, device: str, agent: AgentProcess) -> None:
    try:
        await until_async(lambda: happened(hub, kind, device), f"the event {kind} of {device}", 40.0)
    except TimeoutError as error:
        raise TimeoutError(f"{error}\n{agent.tail()}") from None


def identity(agent: AgentProcess) -> Identity:
    return Identity.load(agent.paths)


async def test_an_agent_renews_with_a_new_key_and_the_old_certificate_is_revoked(
    hub: HubClient, tmp_path: Path
) -> None:
    agent = await enrolled(hub, tmp_path, "renewed-1")
    before = identity(agent)
    await agent.start()
    try:
        await until_event(hub, "device.renewed", "renewed-1", agent)
        after = identity(agent)
        assert after.serial != before.serial
        assert after.key.public_key() != before.key.public_key()
        assert agent.paths.key.stat().st_mode & 0o777 == 0o600
        assert not agent.paths.next_key.exists()
        await agent.until(lambda: (s := agent.status()) is not None and s.link.connected, "the connection")
        shown = (await hub.device("renewed-1")).device
        assert shown.report is not None
        assert shown.certificate_until >= before.not_after.timestamp()
    finally:
        assert await agent.stop() == 0


@pytest.mark.parametrize("moment", MOMENTS)
async def test_an_agent_killed_in_a_renewal_has_a_working_identity_and_ends_the_renewal(
    hub: HubClient, tmp_path: Path, moment: str
) -> None:
    device = f"killed-{moment}"
    agent = await enrolled(hub, tmp_path, device)
    before = identity(agent)
    await agent.start(f"renewal:{moment}")
    assert await agent.exit_code() == -signal.SIGKILL, agent.tail()
    cut = identity(agent)
    assert (cut.serial != before.serial) == (moment in ("swapping", "swapped"))
    waiting = agent.paths.next_key.read_bytes() if agent.paths.next_key.exists() else agent.paths.key.read_bytes()
    await agent.start()
    try:
        await until_event(hub, "device.renewed", device, agent)
        await agent.until(lambda: not agent.paths.next_certificate.exists(), "the new identity to be in place")
        assert agent.paths.key.read_bytes() == waiting, "the key that was there before the power went"
        assert not (await hub.device(device)).device.renewing
    finally:
        await agent.kill()


async def test_an_agent_whose_broker_cannot_be_reached_renews_over_https(hub: HubClient, tmp_path: Path) -> None:
    hasty = msgspec.structs.replace(EARLY, offline_s=0.1, connect_s=0.5)
    agent = await enrolled(hub, tmp_path, "https-1", renewal=hasty)
    there = AgentConfig.load(agent.paths)
    agent.paths.config.write_text(msgspec.structs.replace(there, mqtt_port=1).to_toml())
    await agent.start()
    await until_event(hub, "device.renewal", "https-1", agent)
    assert (await hub.device("https-1")).device.renewing
    assert await agent.stop() == 0
    agent.paths.config.write_text(there.to_toml())
    await agent.start()
    try:
        await until_event(hub, "device.renewed", "https-1", agent)
    finally:
        await agent.kill()


async def test_a_device_that_was_away_for_too_long_comes_back_only_when_an_operator_lets_it(
    hasty_hub: HubClient, tmp_path: Path
) -> None:
    late = RenewalLimits(retry_first_s=0.2, retry_ceiling_s=0.5, offline_s=0.1, connect_s=5.0)
    agent = await enrolled(hasty_hub, tmp_path, "late-1", renewal=late)
    ended = identity(agent).not_after
    await until(lambda: datetime.now(UTC) > ended, "the certificate to end")
    await agent.start()
    try:
        await agent.until(lambda: "expected an operator to let it back in" in agent.log.read_text(), "the refusal")
        assert not await happened(hasty_hub, "device.readmitted", "late-1")
        await hasty_hub.readmit("late-1", 3600.0)
        await until_event(hasty_hub, "device.readmitted", "late-1", agent)
        await until_event(hasty_hub, "device.renewed", "late-1", agent)
        kinds = [event.kind for event in await hasty_hub.events(subject="late-1")]
        assert "device.readmission-allowed" in kinds
    finally:
        await agent.kill()


async def test_a_device_that_was_away_for_too_long_comes_back_with_a_token_for_exactly_its_id(
    hasty_hub: HubClient, tmp_path: Path
) -> None:
    agent = await enrolled(hasty_hub, tmp_path, "late-2")
    ended = identity(agent).not_after
    await until(lambda: datetime.now(UTC) > ended, "the certificate to end")
    free = await hasty_hub.create_token(NewToken())
    with pytest.raises(EnrolError, match="expected a token made for exactly this id"):
        await enrol(agent.paths, hasty_hub.context.url, free, device="late-2", profile=PROFILE, replace=True)
    own = await hasty_hub.create_token(NewToken(device="late-2"))
    await enrol(agent.paths, hasty_hub.context.url, own, device="late-2", profile=PROFILE, replace=True)
    assert identity(agent).not_after > ended
