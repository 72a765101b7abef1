"""A release of one hub, on a medium, into another: verified from the other's root, unsigned until it is signed here."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Conflict, NotFound, Unprocessable
from cloud_hub.initialise import initialise
from cloud_hub.rooms import Rooms
from cloud_hub.service import open_hub
from hub.test_operator_cli import Operator, bundle, files, operator, signed  # noqa: F401
from modules.errors import ModuleError
from modules.manifest import decode_manifest, encode_manifest
from support.devices import PROFILE


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Rooms]:
    """A hub that has never heard of the other."""
    await initialise(tmp_path / "site", HubConfig(dev=True))
    async with open_hub(HubPaths(tmp_path / "site")) as rooms:
        yield rooms


async def carried(site: Rooms, bundle: Path) -> str:  # noqa: F811
    """Uploads what lies in the bundle; the manifest's digest."""
    found = ""
    for blob in (bundle / "blobs").iterdir():
        await site.blobs.put(blob.read_bytes())
        with suppress(ModuleError):
            decode_manifest(blob.read_bytes())
            found = blob.name
    return found


async def test_a_module_of_another_hub_is_taken_in_once_and_signed_here(site: Rooms, bundle: Path) -> None:  # noqa: F811
    digest = await carried(site, bundle)
    taken = await site.packaging.take_in(digest, "", "ann")
    assert (taken.name, taken.version, taken.profile, taken.release_counter) == ("iris", 1, PROFILE, None)
    assert taken.manifest_sha256 == digest, "both hubs mean the same module by its digest"
    await site.image.sign_module("iris", 1, PROFILE, "ann")
    again = await site.packaging.take_in(digest, "", "ann")
    assert again.release_counter == 1
    kinds = [event.kind for event in await site.events.list(subject=f"iris:1/{PROFILE}")]
    assert kinds.count("module.imported") == 1


async def test_a_module_that_is_not_whole_or_is_another_is_refused(site: Rooms, bundle: Path) -> None:  # noqa: F811
    digest = await carried(site, bundle)
    manifest = decode_manifest((bundle / "blobs" / digest).read_bytes())
    first = manifest.files[0].sha256
    await site.blobs.remove(first, float("inf"))
    with pytest.raises(NotFound, match="no blob"):
        await site.packaging.take_in(digest, "", "ann")
    await site.blobs.put((bundle / "blobs" / first).read_bytes())
    await site.packaging.take_in(digest, "", "ann")
    other = encode_manifest(msgspec.structs.replace(manifest, reference=""))
    with pytest.raises(Conflict, match="is here already, with other content"):
        await site.packaging.take_in(await site.blobs.put(other), "", "ann")
    with pytest.raises(Unprocessable, match="manifest"):
        await site.packaging.take_in(await site.blobs.put(b"{}"), "", "ann")


def test_the_command_checks_the_bundle_from_the_pinned_root_before_it_sends_anything(
    operator: Operator,  # noqa: F811
    bundle: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    root = tmp_path / "root.json"
    shutil.copy(bundle / "metadata" / "1.root.json", root)
    (found,) = operator.json("site", "import", bundle, f"iris:1/{PROFILE}", "--root", root)
    assert found["release_counter"], "it was here, signed"
    root.write_bytes(root.read_bytes().replace(b'"version":1', b'"version":7', 1))
    assert "nothing" in operator.refused("site", "import", bundle, f"iris:1/{PROFILE}", "--root", root)
    assert "NAME:VERSION/PROFILE" in operator.refused("site", "import", bundle, "iris:1", "--root", root)
    (bundle / "blobs" / found["manifest_sha256"]).write_bytes(b"{}")
    shutil.copy(bundle / "metadata" / "1.root.json", root)
    operator.refused("site", "import", bundle, f"iris:1/{PROFILE}", "--root", root)
