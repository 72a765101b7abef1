import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_hub.blobs import FolderBlobs
from cloud_hub.config import HubPaths
from cloud_hub.errors import BadRequest, NotFound, TooLarge


def everything(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_blob_is_found_by_the_digest_of_its_bytes(blobs: FolderBlobs) -> None:
    sha256 = await blobs.put(b"some bytes")
    assert sha256 == hashlib.sha256(b"some bytes").hexdigest()
    assert (await blobs.read(sha256), await blobs.size(sha256)) == (b"some bytes", 10)


async def test_the_same_bytes_are_stored_once(blobs: FolderBlobs, hub_paths: HubPaths) -> None:
    assert await blobs.put(b"twice") == (await blobs.put_stream(pieces(b"tw", b"ice"), 100))[0]
    assert len(everything(hub_paths.blobs)) == 1


async def test_a_part_of_a_blob_can_be_read(blobs: FolderBlobs) -> None:
    sha256 = await blobs.put(b"0123456789")
    assert await blobs.read(sha256, 2, 3) == b"234"
    assert await blobs.read(sha256, 8) == b"89"
    assert await blobs.read(sha256, 20, 5) == b""


async def test_a_local_file_becomes_a_blob(blobs: FolderBlobs, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    assert await blobs.size(await blobs.put_file(source)) == 3_000_000


async def test_an_upload_above_the_limit_is_refused_and_leaves_nothing(blobs: FolderBlobs, hub_paths: HubPaths) -> None:
    with pytest.raises(TooLarge, match="at most 10 bytes"):
        await blobs.put_stream(pieces(b"12345", b"67890", b"1"), 10)
    assert everything(hub_paths.blobs) == []


async def test_a_blob_that_is_not_there_is_named(blobs: FolderBlobs) -> None:
    with pytest.raises(NotFound, match="no blob 0000"):
        await blobs.read("0" * 64)


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "0" * 63, "0" * 64 + "\n", "G" * 64])
def test_what_is_no_digest_never_becomes_a_path(blobs: FolderBlobs, text: str) -> None:
    with pytest.raises(BadRequest, match="expected 64 lower-case"):
        blobs.path(text)


async def test_remains_of_an_interrupted_upload_are_removed_and_blobs_kept(
    blobs: FolderBlobs, hub_paths: HubPaths
) -> None:
    sha256 = await blobs.put(b"kept")
    (hub_paths.blobs / ".incoming-remains").write_bytes(b"half")
    await blobs.clean()
    assert everything(hub_paths.blobs) == [blobs.path(sha256)]
