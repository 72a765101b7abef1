"""What a device is offered for a file: only for files it may have, and each offer really opens that file."""

import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from cloud_hub.capabilities import Capabilities, Purpose
from cloud_hub.config import HubPaths
from cloud_hub.serving import Serving
from cloud_hub.transfer_settings import TransferSettings
from cloud_hub.ways import Ways
from modules.bundle import sha256_hex
from modules.manifest import decode_manifest
from modules.messages import MAX_OFFERS, Answer, Get, Offered, Offers, PatchOffer, Refusal
from support.clock import SetClock
from support.trust import OPERATOR, TrustWorld, trust_world

DEVICE, GATEWAY = "cam-17", "box-1"
PATCH = "d" * 64


class FromThisBase:
    """The patches' side: one patch for whoever holds the base."""

    def __init__(self, base: str) -> None:
        self.base = base

    async def offers(self, device: str, file_sha256: str, held: Sequence[str]) -> tuple[PatchOffer, ...]:
        return (PatchOffer(self.base, PATCH, 7),) if self.base in held else ()


class Broken:
    async def offers(self, device: str, file_sha256: str, held: Sequence[str]) -> tuple[PatchOffer, ...]:
        raise RuntimeError("no patches today")


class Bucket:
    """A store that has these files."""

    def __init__(self, *files: str) -> None:
        self.files = files

    async def url(self, sha256: str, expires: int) -> str:
        return f"https://store.example/{sha256}?until={expires}" if sha256 in self.files else ""


class Hub:
    def __init__(self, world: TrustWorld, clock: SetClock) -> None:
        self.world, self.clock = world, clock
        self.rights = Capabilities(world.paths, clock)
        granted = partial(self.rights.allows, "grant")
        self.serving = Serving(world.store, world.blobs, world.image, world.director, granted)
        self.ways = Ways(TransferSettings(), self.serving, self.rights, clock)
        self.file = sha256_hex(b"the model")

    def allows(self, purpose: Purpose, file: str, right: str) -> bool:
        return self.rights.allows(purpose, file, right)

    async def ask(self, files: tuple[str, ...], device: str = DEVICE, held: tuple[str, ...] = ()) -> Offered:
        said = await self.ways.answer(device, Offers(files, held))
        assert isinstance(said, Offered), said
        return said

    async def get(self, device: str, grant: str) -> Answer | Refusal:
        return await self.serving.answer(device, Get("blob", self.file, grant=grant))


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    """One device with a module, and a gateway that has none."""
    clock = SetClock(time.time())
    root = tmp_path / "hub"
    root.mkdir(mode=0o700)
    async with trust_world(HubPaths(root), clock) as world:
        await world.enrol(DEVICE)
        await world.enrol(GATEWAY)
        await world.add_signed("digits", content=b"the model")
        await world.assign(DEVICE, "digits")
        yield Hub(world, clock)


async def test_a_device_is_offered_only_files_that_it_may_have(hub: Hub) -> None:
    other = await hub.world.blobs.put(b"somebody else's")
    offered = await hub.ask((hub.file, other, "0" * 64, hub.file))
    assert [way.file for way in offered.ways] == [hub.file]
    assert (await hub.ask((hub.file,), GATEWAY)).ways == ()
    assert (await hub.ask((hub.file,), "nobody-1")).ways == ()


async def test_a_retired_device_is_offered_nothing(hub: Hub) -> None:
    await hub.world.devices.retire(DEVICE, OPERATOR)
    assert (await hub.ask((hub.file,))).ways == ()


async def test_the_address_is_this_hubs_own_and_its_right_opens_the_file_as_long_as_said(hub: Hub) -> None:
    offered = await hub.ask((hub.file,))
    path, _, right = offered.ways[0].url.partition("?right=")
    assert path == f"/api/v1/blobs/{hub.file}"
    assert 1000 < offered.valid_s <= 3600
    hub.clock.advance(offered.valid_s)
    assert hub.allows("url", hub.file, right)
    hub.clock.advance(31)
    assert not hub.allows("url", hub.file, right)


async def test_an_address_may_begin_with_a_cdns(hub: Hub) -> None:
    hub.ways = Ways(TransferSettings(public_url="https://cdn.example/x/"), hub.serving, hub.rights, hub.clock)
    assert (await hub.ask((hub.file,))).ways[0].url.startswith(f"https://cdn.example/x/api/v1/blobs/{hub.file}?right=")


async def test_without_https_there_is_no_address_and_still_a_grant(hub: Hub) -> None:
    hub.ways = Ways(TransferSettings(https=False), hub.serving, hub.rights, hub.clock)
    way = (await hub.ask((hub.file,))).ways[0]
    assert way.url == ""
    assert way.grant


async def test_a_gateway_fetches_with_a_neighbours_grant_until_it_ends_and_with_nothing_else(hub: Hub) -> None:
    grant = (await hub.ask((hub.file,))).ways[0].grant
    fetched = await hub.get(GATEWAY, grant)
    assert isinstance(fetched, Answer)
    assert fetched.data == b"the model"
    right = (await hub.ask((hub.file,))).ways[0].url.partition("=")[2]
    for wrong in ("", grant[:-1] + "_", grant + "x", right):
        refused = await hub.get(GATEWAY, wrong)
        assert isinstance(refused, Refusal)
        assert refused.key == "not-allowed"
    hub.clock.advance(3700)
    assert isinstance(await hub.get(GATEWAY, grant), Refusal)


async def test_a_grant_that_is_not_good_opens_nothing_that_the_gateway_itself_may_have(hub: Hub) -> None:
    """A neighbour shows it through the gateway, which may have more files than the neighbour."""
    assert isinstance(await hub.get(DEVICE, ""), Answer)
    assert isinstance(await hub.get(DEVICE, "1.forged"), Refusal)


async def test_a_grant_opens_nothing_to_a_device_that_has_been_retired(hub: Hub) -> None:
    grant = (await hub.ask((hub.file,))).ways[0].grant
    await hub.world.devices.retire(GATEWAY, OPERATOR)
    assert isinstance(await hub.get(GATEWAY, grant), Refusal)


async def test_a_file_that_a_store_has_is_offered_from_there_and_the_rest_from_here(hub: Hub) -> None:
    manifest = await manifest_of(hub)
    hub.ways = Ways(TransferSettings(), hub.serving, hub.rights, hub.clock, elsewhere=Bucket(hub.file))
    ways = (await hub.ask((hub.file, manifest))).ways
    assert ways[0].url.startswith(f"https://store.example/{hub.file}?until=")
    assert ways[1].url.startswith("/api/v1/blobs/")


async def test_patches_are_offered_with_an_address_and_a_grant_of_their_own(hub: Hub) -> None:
    base = "e" * 64
    hub.ways = Ways(TransferSettings(), hub.serving, hub.rights, hub.clock, FromThisBase(base))
    assert (await hub.ask((hub.file,))).ways[0].patches == ()
    patch = (await hub.ask((hub.file,), held=(base,))).ways[0].patches[0]
    assert (patch.base, patch.sha256, patch.size) == (base, PATCH, 7)
    assert hub.allows("url", PATCH, patch.url.partition("=")[2])
    assert hub.allows("grant", PATCH, patch.grant)


async def test_patches_that_cannot_be_had_cost_nothing_but_the_patches(hub: Hub) -> None:
    hub.ways = Ways(TransferSettings(), hub.serving, hub.rights, hub.clock, Broken())
    assert (await hub.ask((hub.file,), held=("e" * 64,))).ways[0].file == hub.file


@pytest.mark.parametrize(
    "offers",
    [
        Offers(("0" * 64,) * (MAX_OFFERS + 1)),
        Offers((), ("0" * 64,) * (MAX_OFFERS + 1)),
        Offers(("../../etc/passwd",)),
        Offers(("A" * 64,)),
        Offers((), ("",)),
    ],
)
async def test_a_question_that_no_agent_asks_is_refused(hub: Hub, offers: Offers) -> None:
    said = await hub.ways.answer(DEVICE, offers)
    assert isinstance(said, Refusal)
    assert said.key == "bad-request"


async def manifest_of(hub: Hub) -> str:
    """The digest of the module's manifest, which the device may have as well."""
    for digest in await hub.world.blobs.stored_before(time.time() + 1e6):
        data = await hub.world.blobs.read(digest)
        if data.startswith(b"{") and any(entry.sha256 == hub.file for entry in decode_manifest(data).files):
            return digest
    raise AssertionError("no manifest")
