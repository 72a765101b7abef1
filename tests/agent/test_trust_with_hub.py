"""The agent's trust against the hub's own: what the real hub signs the real agent accepts, and nobody else's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.config import StatePaths
from agent.errors import Refused, TrustError
from agent.trust import Desired, Trust
from agent.trust_manifests import Get as Asking
from cloud_hub.config import HubPaths
from cloud_hub.serving import Serving
from cloud_hub.trust.ceremony import Ceremony
from cloud_hub.trust.keys import Keys
from modules.messages import Answer, Get, Refusal, Repository
from modules.targets import DEVICE_ID_FIELD
from support.ceremony import People
from support.devices import PROFILE
from support.trust import TrustWorld, trust_world

DEVICE = "cam-17"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[TrustWorld]:
    root = tmp_path / "hub"
    root.mkdir(mode=0o700)
    async with trust_world(HubPaths(root), time.time) as hub:
        yield hub


@pytest.fixture
async def trust(hub: TrustWorld, state_dir: StatePaths) -> Trust:
    answer = (await hub.enrol(DEVICE)).answer
    (state_dir.roots / "image.root.json").write_text(answer.image_root)
    (state_dir.roots / "director.root.json").write_text(answer.director_root)
    return Trust(DEVICE, PROFILE, state_dir.roots, state_dir.metadata, time.time)


def asking(hub: TrustWorld, device: str) -> Asking:
    """The hub's serving, asked from the thread that verifies."""
    serving, loop = Serving(hub.store, hub.blobs, hub.image, hub.director), asyncio.get_running_loop()

    def get(repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        asked = serving.answer(device, Get(repository, name, offset, length, held))
        answer = asyncio.run_coroutine_threadsafe(asked, loop).result(20)
        if isinstance(answer, Refusal):
            raise Refused(answer.text, answer.key, answer.timestamp)
        return answer

    return get


async def refresh(trust: Trust, hub: TrustWorld, device: str = DEVICE, **installed: int) -> Desired:
    return await asyncio.to_thread(trust.refresh, installed, asking(hub, device))


async def test_a_fresh_device_is_told_to_run_nothing(hub: TrustWorld, trust: Trust) -> None:
    assert (await refresh(trust, hub)).modules == ()


async def test_an_assigned_module_is_accepted_with_its_manifest(hub: TrustWorld, trust: Trust) -> None:
    digest = await hub.add_signed("digits")
    version = await hub.assign(DEVICE, "digits")
    desired = await refresh(trust, hub)
    assert desired.director_version == version
    assert [(module.name, module.manifest_sha256) for module in desired.modules] == [("digits", digest)]


async def test_updates_and_the_way_back_follow_one_after_the_other(hub: TrustWorld, trust: Trust) -> None:
    await hub.add_signed("digits", 1, b"one")
    await hub.add_signed("digits", 2, b"two")
    await hub.assign(DEVICE, "digits", 2)
    counter = (await refresh(trust, hub)).modules[0].release_counter
    await hub.assign(DEVICE, "digits", 1)
    with pytest.raises(TrustError, match="or later, got") as caught:
        await refresh(trust, hub, digits=counter)
    assert caught.value.key == "older-release"
    await hub.image.sign_module("digits", 1, PROFILE, "operator")
    await hub.assign(DEVICE, "digits", 1)
    back = (await refresh(trust, hub, digits=counter)).modules[0]
    assert (back.version, back.release_counter > counter) == (1, True)


async def test_what_the_hub_signs_for_another_device_is_refused(hub: TrustWorld, trust: Trust) -> None:
    await hub.enrol("cam-18")
    await hub.add_signed("digits")
    for _ in range(3):
        await hub.assign("cam-18", "digits")
    await refresh(trust, hub)
    with pytest.raises(TrustError, match="expected metadata for cam-17, got it for 'cam-18'") as caught:
        await refresh(trust, hub, "cam-18")
    assert caught.value.key == "wrong-device"
    await hub.assign(DEVICE, "digits")
    assert [module.name for module in (await refresh(trust, hub)).modules] == ["digits"]


async def test_a_hub_that_changes_its_word_after_signing_is_refused(hub: TrustWorld, trust: Trust) -> None:
    good = asking(hub, DEVICE)

    def get(repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        answer = good(repository, name, offset, length, held)
        changed = answer.data.replace(DEVICE_ID_FIELD.encode(), b"device_ix")
        return Answer(answer.total, answer.offset, changed if repository == "director" else answer.data)

    with pytest.raises(TrustError) as caught:
        await asyncio.to_thread(trust.refresh, {}, get)
    assert caught.value.key == "bad-signature"


async def test_the_agent_follows_new_roots_of_both_repositories_and_a_publisher_that_signs_offline(
    hub: TrustWorld, trust: Trust
) -> None:
    digest = await hub.add_signed("digits")
    await hub.assign(DEVICE, "digits")
    await refresh(trust, hub)
    ceremony = Ceremony(hub.store, hub.blobs, hub.events, Keys(hub.paths.keys), time.time)
    people = People(hub, ceremony, hub.paths.keys, time.time)
    people.new_key("fresh")
    repositories: tuple[Repository, ...] = ("image", "director")
    for repository in repositories:
        old = [f"{repository}-root-1", f"{repository}-root-2"]
        proposed = await people.next_root(repository, keep=old, new=["fresh"])
        assert (await ceremony.submit_root(repository, people.sign(proposed, *old), "operator")).published  # type: ignore[arg-type]
    released = await people.release("digits", digest, "dev")
    assert (await people.publish(released, "publisher-dev", publisher="dev")).published
    (module,) = (await refresh(trust, hub, digits=1)).modules
    assert module.release_counter == 2
    for repository in repositories:
        assert b'"version":2' in (trust._metadata / repository / "root.json").read_bytes()
