"""The agent updates itself: a new one takes over under the same process, and one that is no good is taken back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent import __version__
from agent.service import CRASH_AT
from cloud_hub.building.request import BuildRequest
from cloud_hub.operator.demo.processes import command, once
from cloud_hub.operator.errors import Refused
from cloud_hub.registry import NewModel
from cloud_hub.rollouts.states import RolloutState
from modules.manifest import Health
from modules.targets import AGENT_MODULE, AGENT_PUBLISHER
from support.predict import served_version
from support.releases import agent_wheel
from system.world import PROFILE, Device, World

pytestmark = pytest.mark.asyncio(loop_scope="session")
SHORT = Health(probation_s=0.5, probation_deadline_s=20.0)


async def test_a_new_agent_takes_over_and_the_modules_serve_on(world: World) -> None:
    version = await released(world, "7.1.0")
    async with world.device("self-1") as device:
        address = await world.roll_out(device, 1)
        pid = device.service.pid
        state, execution = await world.ended(await world.order(device, version, AGENT_MODULE))
        assert state is RolloutState.FINISHED, execution
        status = await device.until("the new agent", lambda status: status.report.agent_version == "7.1.0")
        assert (status.pid, device.service.pid) == (pid, pid)  # the service manager sees one and the same process
        assert await served_version(await device.serves(1)) == 1
        assert await device.serves(1) == address
        await device.service.kill()
        await device.start()  # it is what runs from now on, also after a power cut
        await device.until("the new agent again", lambda status: status.report.agent_version == "7.1.0")
        assert await served_version(await device.serves(1)) == 1


async def test_an_agent_that_does_not_stay_up_is_taken_back_with_the_reason(world: World) -> None:
    good = Path(__file__).resolve().parents[2].joinpath("agent", "supervise.py").read_bytes()
    # It passes what can be tried without starting it: only an agent that is started ends.
    ends = b"import os\nimport sys\n\nif 'agent.release.check' not in sys.orig_argv:\n    os._exit(3)\n"
    version = await released(world, "7.2.0", {"agent/supervise.py": after_future(good, ends)})
    async with world.device("self-2") as device:
        await world.roll_out(device, 1)
        async with restarted(device):
            state, execution = await world.ended(await world.order(device, version, AGENT_MODULE))
        assert (state, execution.reason_key) == (RolloutState.FAILED, "agent-ended"), execution
        assert "ended each time before its probation did" in execution.reason
        status = await device.until("the old agent", lambda status: status.link.connected)
        assert status.report.agent_version == __version__
        assert await served_version(await device.serves(1)) == 1


async def test_an_agent_that_cannot_be_loaded_is_never_started(world: World) -> None:
    version = await released(world, "7.3.0", {"agent/service.py": b"import no_such_package\n"})
    async with world.device("self-3") as device:
        address = await world.roll_out(device, 1)
        pid = device.service.pid
        state, execution = await world.ended(await world.order(device, version, AGENT_MODULE))
        assert (state, execution.reason_key) == (RolloutState.FAILED, "release-check"), execution
        assert "no_such_package" in execution.reason
        assert (device.service.pid, await device.serves(1)) == (pid, address)
        assert list((device.state / "releases").iterdir()) == []


@pytest.mark.parametrize(("number", "cut"), [(1, "activating:after"), (2, "probation:before"), (3, "committed:before")])
async def test_a_power_cut_while_the_agent_changes_leaves_one_that_serves(
    world: World, number: int, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await released(world, f"7.6.{number}")
    async with world.device(f"self-cut-{number}", start=False) as device:
        await device.start()
        await world.roll_out(device, 1)
        await device.service.stop()
        monkeypatch.setenv(CRASH_AT, cut)
        await device.start()
        monkeypatch.delenv(CRASH_AT)
        order = await world.order(device, version, AGENT_MODULE)
        await device.service.ended()
        await device.start()
        state, execution = await world.ended(order)
        # Cut before probation was written down nobody knows who served: back to what is known to be good.
        expected = {"activating:after": (RolloutState.FAILED, "interrupted")}.get(cut, (RolloutState.FINISHED, ""))
        assert (state, execution.reason_key) == expected, execution
        running = __version__ if state is RolloutState.FAILED else f"7.6.{number}"
        await device.until("the agent", lambda status: status.report.agent_version == running)
        assert await served_version(await device.serves(1)) == 1


async def test_a_release_by_another_publisher_is_refused_by_the_hub(world: World) -> None:
    wheel = agent_wheel(world.folder, "7.4.0")
    registered = await world.client.register(NewModel(AGENT_MODULE), {wheel.name: wheel})
    for publisher in ("", "acme"):
        with pytest.raises(Refused, match="no device would run it") as caught:
            await world.client.build(BuildRequest(AGENT_MODULE, registered.version, PROFILE, publisher=publisher))
        assert caught.value.key == "agent-publisher"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mooring-7.5.0-py3-none-any.whl", b"no archive"),
        ("notes.txt", b"no wheel"),
        ("other-1.0-py3-none-any.whl", None),
        ("mooring-7.5.0-cp311-cp311-win_amd64.whl", None),
    ],
)
async def test_what_is_no_wheel_of_ours_is_refused_by_the_hub(world: World, name: str, content: bytes | None) -> None:
    path = world.folder / name
    path.write_bytes(agent_wheel(world.folder, "7.5.1").read_bytes() if content is None else content)
    registered = await world.client.register(NewModel(AGENT_MODULE), {path.name: path})
    request = BuildRequest(AGENT_MODULE, registered.version, PROFILE, publisher=AGENT_PUBLISHER)
    with pytest.raises(Refused) as caught:
        await world.client.build(request)
    assert caught.value.key == "wheel-refused"


async def released(world: World, version: str, changed: Mapping[str, bytes] | None = None) -> int:
    """Registered, built and signed as a person would; the module's version."""
    await delegated(world)
    wheel = agent_wheel(world.folder, version, changed)
    registered = await world.client.register(NewModel(AGENT_MODULE), {wheel.name: wheel})
    request = BuildRequest(AGENT_MODULE, registered.version, PROFILE, publisher=AGENT_PUBLISHER, health=SHORT)
    await world.client.build(request)
    await mooring(world, "module", "sign", f"{AGENT_MODULE}:{registered.version}", "--key", str(key_of(world)))
    return registered.version


async def delegated(world: World) -> None:
    """The publisher of agents, delegated by the offline targets key: once for all tests."""
    if key_of(world).exists():
        return
    await mooring(world, "key", "new", AGENT_PUBLISHER, "--out", str(key_of(world)))
    public, targets = key_of(world).with_suffix(".pub"), world.hub.folder / "keys" / "image-targets.pem"
    options = ("--public-key", str(public), "--targets-key", str(targets), "--yes")
    await mooring(world, "trust", "add-publisher", AGENT_PUBLISHER, *options)


def key_of(world: World) -> Path:
    return world.folder / "agents.pem"


async def mooring(world: World, *arguments: str) -> None:
    await once([command("mooring"), "--context", str(world.hub.context), *arguments])


def after_future(source: bytes, inserted: bytes) -> bytes:
    """`source` with lines put after its `from __future__` import, where code may begin."""
    line = b"from __future__ import annotations\n"
    head, found, rest = source.partition(line)
    assert found
    return head + line + b"\n" + inserted + rest


@asynccontextmanager
async def restarted(device: Device) -> AsyncIterator[None]:
    """What a service manager does: the agent is started again whenever it ends."""

    async def keep() -> None:
        while True:
            await device.service.ended()
            await device.start()

    task = asyncio.create_task(keep(), name="service manager")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
