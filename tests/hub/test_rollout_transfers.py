"""How many bytes a rollout means for a device: what it has costs nothing, a patch counts where it is less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert

from cloud_hub.blobs import FolderBlobs
from cloud_hub.rollouts.transfers import MAX_PRICED, Step, Transfer, price, transfers
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules, patches
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Lineage, Manifest, encode_manifest

EDGE = "edge"


def entry(path: str, *chunks: bytes) -> FileEntry:
    whole = b"".join(chunks)
    return FileEntry(path, len(whole), sha256_hex(whole), tuple(Chunk(sha256_hex(c), len(c)) for c in chunks))


A, B, C, D = (letter * 1000 for letter in (b"a", b"b", b"c", b"d"))
LABELS = entry("labels.txt", b"0123456789")


async def build(store: Store, blobs: FolderBlobs, version: int, *files: FileEntry) -> None:
    manifest = Manifest("digits", version, EDGE, Lineage("digits", version), (), (), files)
    digest = await blobs.put(encode_manifest(manifest))
    row = {
        "name": "digits", "version": version, "profile": EDGE, "publisher": "dev", "manifest_sha256": digest,
        "manifest_size": 1, "size": manifest.size, "release_counter": version, "created_at": 0.0, "signed_at": 0.0,
    }  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(modules).values(row))


async def patch(store: Store, target: FileEntry, base: FileEntry, size: int, state: str = "built") -> None:
    row = {
        "target": target.sha256, "base": base.sha256, "module": "digits", "path": target.path, "base_version": 1,
        "version": 2, "target_size": target.size, "devices": 0, "holders": 0, "state": state, "attempts": 1,
        "not_before": 0.0, "reason": "", "sha256": sha256_hex(target.sha256.encode()), "size": size, "queued_at": 0.0,
    }  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(patches).values(row))


OLD, NEW = entry("model.onnx", A, B), entry("model.onnx", A, C, D)


@pytest.fixture
async def built(store: Store, blobs: FolderBlobs) -> Store:
    await build(store, blobs, 1, OLD, LABELS)
    await build(store, blobs, 2, NEW, LABELS)
    return store


async def ask(store: Store, blobs: FolderBlobs, steps: dict[Step, int], patched: bool = True) -> list[Transfer]:
    async with store.read() as connection:
        return list(await transfers(connection, blobs, "digits", 2, steps, patched))


async def test_files_and_chunks_that_the_old_version_has_are_not_loaded_again(built: Store, blobs: FolderBlobs) -> None:
    found = await ask(built, blobs, {Step(EDGE, 0): 1, Step(EDGE, 1): 7, Step(EDGE, 2): 3})
    assert found == [
        Transfer(EDGE, 1, 7, 2000, 3010),
        Transfer(EDGE, 2, 3, 0, 3010),
        Transfer(EDGE, 0, 1, 3010, 3010),
    ]
    assert found[0].total == 14_000


async def test_a_patch_counts_where_it_is_built_and_smaller_and_patches_are_offered(
    built: Store, blobs: FolderBlobs
) -> None:
    await patch(built, NEW, OLD, 150)
    assert await ask(built, blobs, {Step(EDGE, 1): 1}) == [Transfer(EDGE, 1, 1, 150, 3010, by_patch=True)]
    assert await ask(built, blobs, {Step(EDGE, 1): 1}, patched=False) == [Transfer(EDGE, 1, 1, 2000, 3010)]


@pytest.mark.parametrize(("size", "state"), [(2500, "built"), (10, "queued")])
async def test_a_patch_that_is_larger_or_not_there_yet_does_not_count(
    built: Store, blobs: FolderBlobs, size: int, state: str
) -> None:
    await patch(built, NEW, OLD, size, state)
    assert await ask(built, blobs, {Step(EDGE, 1): 1}) == [Transfer(EDGE, 1, 1, 2000, 3010)]


async def test_a_version_that_the_hub_no_longer_has_counts_in_full(built: Store, blobs: FolderBlobs) -> None:
    assert await ask(built, blobs, {Step(EDGE, 9): 2}) == [Transfer(EDGE, 9, 2, 3010, 3010)]


async def test_a_manifest_that_cannot_be_read_counts_in_full(built: Store, blobs: FolderBlobs) -> None:
    async with built.write() as connection:
        digest = await blobs.put(b"from a hub of next year")
        await connection.execute(modules.update().where(modules.c.version == 1).values(manifest_sha256=digest))
    assert await ask(built, blobs, {Step(EDGE, 1): 2}) == [Transfer(EDGE, 1, 2, 3010, 3010)]


async def test_only_the_most_common_versions_are_compared(built: Store, blobs: FolderBlobs) -> None:
    steps = {Step(EDGE, version): 1000 - version for version in range(10, 10 + MAX_PRICED)} | {Step(EDGE, 1): 1}
    assert (await ask(built, blobs, steps))[-1] == Transfer(EDGE, 1, 1, 3010, 3010)


chunks = st.lists(st.sampled_from([A, B, C, D]), min_size=1, max_size=4)
files = st.lists(chunks, min_size=1, max_size=3).map(lambda many: [entry(f"f{n}", *one) for n, one in enumerate(many)])


@given(files, files, st.integers(0, 4000))
def test_the_price_lies_between_nothing_and_everything_and_a_patch_never_raises_it(
    new: list[FileEntry], old: list[FileEntry], size: int
) -> None:
    cost, _ = price(new, old, {})
    assert 0 <= cost <= sum(one.size for one in new)
    assert price(new, new, {}) == (0, False)
    patched, by_patch = price(new, old, {new[0].sha256: size})
    assert patched <= cost
    assert by_patch == (patched < cost)
