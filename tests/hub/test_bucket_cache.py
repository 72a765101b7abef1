"""Blobs in a bucket: what is kept here, what is fetched once, and what happens while the store is away or lies."""

import asyncio
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import S3Store

from cloud_hub.bucket import blobs as bucket_blobs
from cloud_hub.bucket.blobs import STRIDE_BYTES, WHOLE_BYTES, BucketBlobs
from cloud_hub.bucket.cache import Cache
from cloud_hub.bucket.objects import Objects
from cloud_hub.bucket.settings import BucketSettings, Place
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest, NotFound, Unavailable
from support.bucket import Bucket, serving
from support.s3 import S3, running_s3
from support.waiting import until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.fixture
def place(s3: S3) -> Place:
    name = f"b{time.time_ns()}"
    s3.make(name)
    return Place(name, "files")


def replica(
    s3: S3, place: Place, folder: Path, name: str, cache: int = 64 * MIB, timeout_s: float = 20.0
) -> BucketBlobs:
    """One of those that share the bucket, with a cache of its own."""
    return BucketBlobs(Objects(place, s3.settings(folder, timeout_s)), Cache(folder / name, cache), 3600.0)


def _objects(bucket: Bucket, folder: Path, secret: str = "") -> Objects:
    file = folder / "bucket.toml"
    file.touch(0o600)
    secret = secret or bucket.secret_access_key
    file.write_text(f'access_key_id = "{bucket.access_key_id}"\nsecret_access_key = "{secret}"\n')
    return Objects(Place(bucket.name, ""), BucketSettings(bucket.endpoint, bucket.region, str(file)))


def raw(s3: S3, place: Place) -> S3Store:
    """The bucket as others see it."""
    return S3Store(
        place.bucket, prefix=place.prefix, endpoint=s3.endpoint, region="us-east-1", access_key_id="a",
        secret_access_key="b", client_options={"allow_http": True}, virtual_hosted_style_request=False,
    )  # fmt: skip


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("??/*")}


async def test_what_one_replica_stores_another_reads(s3: S3, place: Place, tmp_path: Path) -> None:
    one, two = replica(s3, place, tmp_path, "one"), replica(s3, place, tmp_path, "two")
    sha256 = await one.put(b"a manifest")
    assert await two.read(sha256, 2, 4) == b"mani"
    assert kept(tmp_path / "two") == {sha256}


async def test_a_large_file_is_read_in_parts_until_it_is_here(s3: S3, place: Place, tmp_path: Path) -> None:
    one, two = replica(s3, place, tmp_path, "one"), replica(s3, place, tmp_path, "two")
    data = os.urandom(WHOLE_BYTES + STRIDE_BYTES)
    sha256 = await one.put(data)
    parts = await asyncio.gather(*(two.read(sha256, at, 65_536) for at in range(0, 10 * 65_536, 65_536)))
    assert b"".join(parts) == data[: 10 * 65_536]
    await until(lambda: kept(tmp_path / "two") == {sha256}, "the whole file to come")
    with s3.away():  # and now nobody else is needed
        assert await two.read(sha256, len(data) - 10, 100) == data[-10:]
    await two.close()


async def test_a_file_larger_than_the_cache_is_never_kept(s3: S3, place: Place, tmp_path: Path) -> None:
    small = replica(s3, place, tmp_path, "small", MIB)
    data = os.urandom(2 * MIB)
    sha256 = await small.put(data)
    assert await small.read(sha256, MIB, 1000) == data[MIB : MIB + 1000]
    assert b"".join([page async for page in small.pages(sha256, 0, len(data), 100_000)]) == data
    assert kept(tmp_path / "small") == set()


async def test_the_cache_keeps_what_was_used_last_and_what_is_in_use(s3: S3, place: Place, tmp_path: Path) -> None:
    blobs = replica(s3, place, tmp_path, "one", 1000)
    digests = [await blobs.put(bytes([number]) * 400) for number in range(2)]
    await blobs.read(digests[0])
    third = await blobs.put(b"3" * 400)
    assert kept(tmp_path / "one") == {digests[0], third}
    async with blobs.at_hand(digests[0], digests[1], third) as paths:
        assert [path.stat().st_size for path in paths] == [400, 400, 400]
        await blobs.put(b"4" * 400)
        assert all(path.is_file() for path in paths)
    fifth = await blobs.put(b"5" * 400)
    assert fifth in kept(tmp_path / "one")
    assert sum(path.stat().st_size for path in (tmp_path / "one").glob("??/*")) <= 1000


async def test_a_cache_is_found_again_after_a_restart_and_what_is_missing_there_is_fetched(
    s3: S3, place: Place, tmp_path: Path
) -> None:
    sha256 = await replica(s3, place, tmp_path, "one").put(b"a manifest")
    again = replica(s3, place, tmp_path, "one")
    with s3.away():
        assert await again.read(sha256) == b"a manifest"
    (tmp_path / "one" / sha256[:2] / sha256).unlink()
    assert await again.read(sha256, 0, 4) == b"a ma"
    async with again.at_hand(sha256) as (path,):
        path.unlink()
    async with again.at_hand(sha256) as (path,):
        assert path.read_bytes() == b"a manifest"


async def test_while_the_store_is_away_nothing_is_stored_and_what_is_here_is_read(
    s3: S3, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_blobs, "KNOWN_S", 0.0)
    near = replica(s3, place, tmp_path, "two")
    sha256 = await replica(s3, place, tmp_path, "one").put(b"a manifest")
    other = await near.put(b"another")
    with s3.away():
        away = replica(s3, place, tmp_path, "one", timeout_s=0.5)
        assert (await away.read(sha256, 0, 4), await away.size(sha256)) == (b"a ma", 10)
        for question in (away.put(b"new"), away.read(other), away.size(other), away.holds(other),
                         away.remove(sha256, 1e12), away.stored_before(1e12), away.total_bytes()):  # fmt: skip
            with pytest.raises(Unavailable, match="try again later") as refused:
                await question
            assert refused.value.key == "blob-store-unreachable"
    new = hashlib.sha256(b"new").hexdigest()
    assert not await near.holds(new)
    assert new not in kept(tmp_path / "one")
    assert await near.put(b"new") == new


async def test_what_the_store_has_spoilt_is_never_read_nor_kept(s3: S3, place: Place, tmp_path: Path) -> None:
    one, two = replica(s3, place, tmp_path, "one"), replica(s3, place, tmp_path, "two")
    sha256 = await one.put(b"a manifest")
    await raw(s3, place).put_async(f"{sha256[:2]}/{sha256}", b"a manifesT")
    with pytest.raises(Unavailable, match="another digest") as refused:
        await two.read(sha256)
    assert refused.value.key == "blob-damaged"
    assert kept(tmp_path / "two") == set()


async def test_one_fetch_serves_all_who_wait_and_outlives_who_gives_up(s3: S3, place: Place, tmp_path: Path) -> None:
    one, two = replica(s3, place, tmp_path, "one"), replica(s3, place, tmp_path, "two")
    sha256 = await one.put(b"m" * MIB)
    with s3.away():
        waiting = [asyncio.create_task(two.read(sha256)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    assert {len(data) for data in await asyncio.gather(*waiting[1:])} == {MIB}
    assert waiting[0].cancelled()


async def test_what_is_stored_anew_is_sent_again_only_where_it_was_stored_long_ago(tmp_path: Path) -> None:
    async with serving(Bucket()) as bucket:
        for refresh_s, sent in ((1e9, 1), (1e9, 1), (1.0, 2)):  # the store says that what it has is of some past day
            blobs = BucketBlobs(_objects(bucket, tmp_path), Cache(tmp_path / "cache", MIB), refresh_s)
            await blobs.put(b"an upload")
            assert len(bucket.puts) == sent


async def test_a_file_that_another_replica_has_removed_is_gone_when_it_is_asked_for_anew(
    s3: S3, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replica(s3, place, tmp_path, "one"), replica(s3, place, tmp_path, "two")
    sha256 = await one.put(b"an upload")
    assert await two.holds(sha256)
    await one.remove(sha256, 1e12)
    monkeypatch.setattr(bucket_blobs, "KNOWN_S", 0.0)
    with pytest.raises(NotFound):
        await one.read(sha256)
    two._known.clear()
    assert not await two.holds(sha256)


async def test_wrong_credentials_and_a_bucket_that_is_not_there_are_said(tmp_path: Path) -> None:
    async with serving(Bucket()) as bucket:
        blobs = BucketBlobs(_objects(bucket, tmp_path, "another"), Cache(tmp_path / "cache", MIB), 3600.0)
        with pytest.raises(Unavailable, match=r"s3://models/.*localhost") as refused:
            await blobs.put(b"data")
        assert "another" not in refused.value.message
        assert bucket.objects == {}
    with pytest.raises(Unavailable, match="credentials"):
        Objects(Place(bucket.name, ""), BucketSettings("https://s3.example", credentials=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("blobs", "endpoint", "words"),
    [
        ("s3://Models", "https://s3.example", "s3://BUCKET/FOLDER"),
        ("s3://models/../others", "https://s3.example", "s3://BUCKET/FOLDER"),
        ("/var/blobs", "", "expected folder or"),
        ("s3://models/hub", "", "bucket.endpoint"),
        ("s3://models/hub", "http://s3.example", "bucket.endpoint"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, blobs: str, endpoint: str, words: str) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    HubConfig().write(folder)
    with HubPaths(folder).config.open("a") as file:
        file.write(f'\n[bucket]\nendpoint = "{endpoint}"\n')
    with pytest.raises(BadRequest, match=words):
        HubConfig.load(folder, {"MOORING_HUB_BLOBS": blobs})


def test_settings_of_a_bucket_are_written_and_read_again(tmp_path: Path) -> None:
    settings = BucketSettings("http://minio:9000", plain_http=True, cache_mib=100.0)
    config = HubConfig(blobs="s3://models/hub", bucket=settings)
    config.write(tmp_path)
    assert HubConfig.load(tmp_path, {}) == config
