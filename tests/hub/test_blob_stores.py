"""What every store of blobs does: in a folder, in a bucket of moto's server, and of one that checks signatures."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from cloud_hub.blobs import Blobs, FolderBlobs
from cloud_hub.bucket.blobs import BucketBlobs
from cloud_hub.bucket.cache import Cache
from cloud_hub.bucket.objects import PART_BYTES, Objects
from cloud_hub.bucket.settings import BucketSettings, Place
from cloud_hub.errors import BadRequest, NotFound, TooLarge
from support.bucket import Bucket, serving
from support.s3 import S3, running_s3

pytest.importorskip("obstore")
UNKNOWN = "0" * 64
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.fixture(params=["folder", "bucket", "signed bucket"])
async def any_blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Blobs]:
    """A store with nothing in it."""
    async with AsyncExitStack() as parts:
        if request.param == "folder":
            made: Blobs = FolderBlobs(tmp_path / "blobs")
        elif request.param == "bucket":
            server: S3 = request.getfixturevalue("s3")
            name = f"b{time.time_ns()}"
            server.make(name)
            made = _in_bucket(name, server.settings(tmp_path), tmp_path)
        else:
            bucket = await parts.enter_async_context(serving(Bucket()))
            made = _in_bucket(bucket.name, _settings(bucket, tmp_path), tmp_path)
        yield made
        await made.close()


def _settings(bucket: Bucket, folder: Path) -> BucketSettings:
    credentials = folder / "bucket.toml"
    credentials.touch(0o600)
    credentials.write_text(
        f'access_key_id = "{bucket.access_key_id}"\nsecret_access_key = "{bucket.secret_access_key}"\n'
    )
    return BucketSettings(bucket.endpoint, bucket.region, str(credentials))


def _in_bucket(name: str, settings: BucketSettings, folder: Path) -> BucketBlobs:
    return BucketBlobs(Objects(Place(name, "fleet/files"), settings), Cache(folder / "cache", 64 * MIB), 3600.0)


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_what_is_put_is_found_by_its_digest_whole_and_in_parts(any_blobs: Blobs) -> None:
    sha256 = await any_blobs.put(b"0123456789")
    assert sha256 == hashlib.sha256(b"0123456789").hexdigest()
    assert (await any_blobs.read(sha256), await any_blobs.size(sha256)) == (b"0123456789", 10)
    assert await any_blobs.holds(sha256)
    parts = [await any_blobs.read(sha256, 2, 3), await any_blobs.read(sha256, 8), await any_blobs.read(sha256, 8, 99)]
    assert parts == [b"234", b"89", b"89"]
    assert await any_blobs.read(sha256, 20, 5) == b""


async def test_a_large_upload_comes_back_in_pages_and_as_a_file(any_blobs: Blobs, tmp_path: Path) -> None:
    data = bytes(range(256)) * (2 * PART_BYTES // 256) + b"and some more"
    sha256, size = await any_blobs.put_stream(pieces(data[:MIB], data[MIB:]), 2 * len(data))
    assert (sha256, size) == (hashlib.sha256(data).hexdigest(), len(data))
    pages = [page async for page in any_blobs.pages(sha256, 5, len(data) - 5, 300_000)]
    assert b"".join(pages) == data[5:-5]
    assert max(map(len, pages)) <= 300_000
    async with any_blobs.at_hand(sha256) as (path,):
        assert path.read_bytes() == data
    await any_blobs.copy(sha256, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


async def test_a_local_file_becomes_a_blob_and_nothing_of_nothing_is_one_too(any_blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 3_000_000)
    assert await any_blobs.size(await any_blobs.put_file(tmp_path / "source")) == 3_000_000
    empty = await any_blobs.put(b"")
    assert (await any_blobs.size(empty), await any_blobs.read(empty)) == (0, b"")
    assert [page async for page in any_blobs.pages(empty, 0, 0, 10)] == []


async def test_an_upload_above_the_limit_is_refused_and_leaves_nothing(any_blobs: Blobs) -> None:
    with pytest.raises(TooLarge, match="at most 10 bytes"):
        await any_blobs.put_stream(pieces(b"12345", b"67890", b"1"), 10)
    assert await any_blobs.stored_before(time.time() + 1e6) == set()
    assert await any_blobs.total_bytes() == 0


async def test_what_is_not_there_is_named(any_blobs: Blobs, tmp_path: Path) -> None:
    assert not await any_blobs.holds(UNKNOWN)
    for question in (any_blobs.read(UNKNOWN), any_blobs.size(UNKNOWN), any_blobs.copy(UNKNOWN, tmp_path / "copy")):
        with pytest.raises(NotFound, match="no blob 0000"):
            await question
    with pytest.raises(NotFound, match="no blob 0000"):
        await anext(any_blobs.pages(UNKNOWN, 0, 1, 1))
    with pytest.raises(NotFound, match="no blob 0000"):
        async with any_blobs.at_hand(UNKNOWN):
            raise AssertionError("there is nothing at hand")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "0" * 63, "0" * 64 + "\n", "G" * 64])
async def test_what_is_no_digest_is_refused(any_blobs: Blobs, text: str) -> None:
    for question in (any_blobs.read(text), any_blobs.size(text), any_blobs.holds(text), any_blobs.remove(text, 1e12)):
        with pytest.raises(BadRequest, match="expected 64 lower-case"):
            await question


async def test_what_is_older_than_a_moment_is_listed_and_removed_once(any_blobs: Blobs) -> None:
    one, two = await any_blobs.put(b"one"), await any_blobs.put(b"more than one")
    assert await any_blobs.stored_before(1.0) == set()
    later = time.time() + 1e6
    assert await any_blobs.stored_before(later) == {one, two}
    assert await any_blobs.total_bytes() == 16
    assert await any_blobs.remove(one, 1.0) is None
    assert await any_blobs.remove(one, later) == 3
    assert await any_blobs.remove(one, later) is None
    assert (await any_blobs.holds(one), await any_blobs.holds(two)) == (False, True)
    assert await any_blobs.stored_before(later) == {two}


async def test_many_who_store_and_read_the_same_at_once_have_the_same(any_blobs: Blobs) -> None:
    data = b"the same model" * 100_000
    digests = await asyncio.gather(*(any_blobs.put(data) for _ in range(8)))
    assert len(set(digests)) == 1
    assert await any_blobs.total_bytes() == len(data)
    parts = await asyncio.gather(*(any_blobs.read(digests[0], at, 1000) for at in range(0, 100_000, 1000)))
    assert b"".join(parts) == data[:100_000]
