"""Files in a bucket of an S3-compatible store: brought there once, offered by addresses that end, and never needed."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import msgspec
import pytest

from cloud_hub import mirror as mirrors
from cloud_hub.blobs import Blobs, FolderBlobs
from cloud_hub.bucket.blobs import BucketBlobs
from cloud_hub.bucket.cache import Cache
from cloud_hub.bucket.objects import Objects
from cloud_hub.bucket.settings import BucketSettings, Place
from cloud_hub.clock import system_clock
from cloud_hub.config import HubConfig
from cloud_hub.errors import BadRequest, Unavailable
from cloud_hub.mirror import PART_BYTES, Mirror
from cloud_hub.transfer_settings import S3Credentials, S3Settings, TransferSettings
from support.bucket import Bucket, serving
from support.certificates import make_ca, make_server
from support.waiting import until, until_async

pytest.importorskip("obstore")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(mirrors, "LAST_PAUSE_S", 0.2)


@pytest.fixture
async def bucket() -> AsyncIterator[Bucket]:
    async with serving(Bucket()) as bucket:
        yield bucket


def settings(bucket: Bucket, folder: Path) -> S3Settings:
    credentials = folder / "s3.toml"
    credentials.touch(0o600)
    credentials.write_text(
        f'access_key_id = "{bucket.access_key_id}"\nsecret_access_key = "{bucket.secret_access_key}"\n'
    )
    return S3Settings(bucket.endpoint, bucket.name, bucket.region, "fleet/one", str(credentials))


@asynccontextmanager
async def mirroring(settings: S3Settings, blobs: Blobs, *needed: str) -> AsyncIterator[Mirror]:
    async def wanted() -> frozenset[str]:
        return frozenset(needed)

    mirror = Mirror(settings, blobs, system_clock, wanted)
    mirror.open()
    task = asyncio.create_task(mirror.run(), name="mirror")
    try:
        yield mirror
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def soon() -> int:
    return int(time.time()) + 600


async def address(mirror: Mirror, sha256: str) -> str:
    """Once the file is there."""
    found: list[str] = []

    async def there() -> bool:
        found[:] = [await mirror.url(sha256, soon())]
        return bool(found[0])

    await until_async(there, "the file to be in the bucket", 30)
    return found[0]


async def fetched(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.request(method, url, headers=headers) as response:
        return response.status, await response.read()


async def test_what_modules_need_is_brought_there_and_offered_by_an_address_that_opens_it_alone(
    bucket: Bucket, tmp_path: Path
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    one, other = await blobs.put(b"the model" * 1000), await blobs.put(b"another")
    async with mirroring(settings(bucket, tmp_path), blobs, one, other) as mirror:
        url = await address(mirror, one)
        await address(mirror, other)
    assert bucket.objects[f"fleet/one/{one[:2]}/{one}"] == b"the model" * 1000
    assert await fetched(url) == (200, b"the model" * 1000)
    assert await fetched(url, Range="bytes=4-8") == (206, b"model")
    for changed in (url.replace(one, other), url[:-1] + ("0" if url[-1] != "0" else "1"), url.partition("?")[0],
                    url.replace("X-Amz-Expires=", "X-Amz-Expires=9")):  # fmt: skip
        assert (await fetched(changed))[0] == 403
    assert (await fetched(url, "PUT"))[0] == 403
    assert (await fetched(url, "DELETE"))[0] == 403


async def test_an_address_ends_when_the_device_was_told_so(bucket: Bucket, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    one = await blobs.put(b"the model")
    async with mirroring(settings(bucket, tmp_path), blobs, one) as mirror:
        await address(mirror, one)
        url = await mirror.url(one, int(time.time()) + 2)

        async def ended() -> bool:
            return (await fetched(url))[0] == 403

        await until_async(ended, "the address to end")
    assert bucket.refused[-1] == "the address has ended"


async def test_a_large_file_goes_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    blobs, data = FolderBlobs(tmp_path / "blobs"), bytes(range(256)) * (2 * PART_BYTES // 256) + b"and some more"
    one = await blobs.put(data)
    async with mirroring(settings(bucket, tmp_path), blobs, one) as mirror:
        await address(mirror, one)
    assert bucket.objects[f"fleet/one/{one[:2]}/{one}"] == data
    assert bucket.parts == {}


async def test_what_is_there_already_is_not_sent_again_and_half_of_it_is(bucket: Bucket, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    whole, half = await blobs.put(b"whole"), await blobs.put(b"half of it")
    bucket.objects = {f"fleet/one/{whole[:2]}/{whole}": b"whole", f"fleet/one/{half[:2]}/{half}": b"half"}
    async with mirroring(settings(bucket, tmp_path), blobs, whole, half) as mirror:
        await address(mirror, whole)
        await address(mirror, half)
    assert bucket.puts == [f"fleet/one/{half[:2]}/{half}"]
    assert bucket.objects[bucket.puts[0]] == b"half of it"


async def test_a_file_that_somebody_asks_for_is_brought_too(bucket: Bucket, tmp_path: Path) -> None:
    """As a patch is, which belongs to no module."""
    blobs = FolderBlobs(tmp_path / "blobs")
    async with mirroring(settings(bucket, tmp_path), blobs) as mirror:
        patch = await blobs.put(b"a patch")
        assert await mirror.url(patch, soon()) == ""
        assert await fetched(await address(mirror, patch)) == (200, b"a patch")


async def test_a_store_that_is_down_offers_nothing_until_it_is_back(bucket: Bucket, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    one = await blobs.put(b"the model")
    bucket.down = True
    async with mirroring(settings(bucket, tmp_path), blobs, one) as mirror:
        await until(lambda: mirror._failures > 0, "the first failure")
        assert await mirror.url(one, soon()) == ""
        bucket.down = False
        await address(mirror, one)


async def test_wrong_credentials_bring_nothing_and_say_nothing_secret(
    bucket: Bucket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    one = await blobs.put(b"the model")
    mine = settings(bucket, tmp_path)
    bucket.secret_access_key = "something else"
    async with mirroring(mine, blobs, one) as mirror:
        await until(lambda: mirror._failures > 0, "the first failure", 30)
    assert bucket.objects == {}
    assert "another signature" in bucket.refused
    assert "secret/of+the+tests" not in caplog.text


async def test_a_file_that_is_gone_from_the_hub_is_passed_over(bucket: Bucket, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    one = await blobs.put(b"the model")
    async with mirroring(settings(bucket, tmp_path), blobs, "0" * 64, one) as mirror:
        await address(mirror, one)
        assert await mirror.url("0" * 64, soon()) == ""


async def test_a_store_behind_tls_is_believed_by_the_systems_authorities_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = make_ca("a public CA")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*make_server(ca, "localhost").write(tmp_path / "store", "store"))
    blobs = FolderBlobs(tmp_path / "blobs")
    one = await blobs.put(b"the model")
    async with serving(Bucket(), context) as bucket:
        async with mirroring(settings(bucket, tmp_path), blobs, one) as mirror:
            await until(lambda: mirror._failures > 0, "the first failure", 30)
        assert bucket.objects == {}
        (tmp_path / "ca.crt").write_text(ca.pem)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.crt"))
        async with mirroring(settings(bucket, tmp_path), blobs, one) as mirror:
            assert (await address(mirror, one)).startswith(f"{bucket.endpoint}/models/fleet/one/")


# Settings


def test_credentials_come_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "s3.toml"
    named = S3Settings("https://s3.example", "models", credentials=str(file))
    with pytest.raises(ValueError, match="No such file"):
        named.load_credentials({})
    file.touch(0o600)
    file.write_text('access_key_id = "a"\nsecret_access_key = "b"\n')
    assert named.load_credentials({}) == S3Credentials("a", "b")
    file.chmod(0o640)
    with pytest.raises(ValueError, match="only its owner"):
        named.load_credentials({})
    file.chmod(0o600)
    file.write_text('secret_access_key = "very secret"\nnonsense')
    with pytest.raises(ValueError, match="expected access_key_id and secret_access_key") as caught:
        named.load_credentials({})
    assert "very secret" not in str(caught.value)
    plain = S3Settings("https://s3.example", "models")
    assert plain.load_credentials({"AWS_ACCESS_KEY_ID": "c", "AWS_SECRET_ACCESS_KEY": "d"}) == S3Credentials("c", "d")
    with pytest.raises(ValueError, match="AWS_ACCESS_KEY_ID"):
        plain.load_credentials({})
    assert "d" not in repr(S3Credentials("c", "d")).removeprefix("S3Credentials")


def test_a_mirror_without_credentials_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)

    async def nothing() -> frozenset[str]:
        return frozenset()

    mirror = Mirror(S3Settings("https://s3.example", "models"), FolderBlobs(tmp_path), system_clock, nothing)
    with pytest.raises(Unavailable, match="AWS_ACCESS_KEY_ID") as caught:
        mirror.open()
    assert caught.value.key == "s3-unavailable"


@pytest.mark.parametrize(
    "wrong",
    [
        {"public_url": "http://cdn.example"},
        {"public_url": "https://cdn.example/?a=b"},
        {"public_url": "https://user:word@cdn.example"},
        {"public_url": "cdn.example"},
        {"url_life_s": 10},
        {"url_life_s": 1e6},
        {"transfers": 0},
        {"write_s": 0},
        {"s3": {"bucket": "models", "endpoint": "http://s3.example"}},
        {"s3": {"bucket": "models"}},
        {"s3": {"bucket": "models", "endpoint": "https://s3.example", "prefix": "/a//b"}},
        {"s3": {"bucket": "models", "endpoint": "https://s3.example", "upload_timeout_s": 0}},
        {"s3": {"buckets": "models"}},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(tmp_path: Path, wrong: dict[str, object]) -> None:
    HubConfig().write(tmp_path)
    text = (tmp_path / "hub.toml").read_text()
    plain = {key: value for key, value in wrong.items() if key != "s3"}
    lines = ["[transfer]", *(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in plain.items())]
    s3 = wrong.get("s3")
    if isinstance(s3, dict):
        lines += ["[transfer.s3]", *(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in s3.items())]
    (tmp_path / "hub.toml").write_text(text + "\n".join(lines) + "\n")
    with pytest.raises(BadRequest, match="transfer"):
        HubConfig.load(tmp_path, {})


def test_settings_come_back_from_the_file_as_they_were_written(tmp_path: Path) -> None:
    s3 = S3Settings("https://s3.example", "models", "eu-north-1", "a/b", "s3.toml")
    config = HubConfig(transfer=TransferSettings(public_url="https://cdn.example/x", url_life_s=600.0, s3=s3))
    config.write(tmp_path)
    assert HubConfig.load(tmp_path, {}) == config


async def test_files_that_lie_in_the_same_bucket_are_offered_from_there_and_not_sent_again(
    bucket: Bucket, tmp_path: Path
) -> None:
    s3 = settings(bucket, tmp_path)
    own = BucketSettings(bucket.endpoint, bucket.region, s3.credentials)
    blobs = BucketBlobs(Objects(Place(bucket.name, s3.prefix), own), Cache(tmp_path / "cache", 2**20), 3600.0)
    one = await blobs.put(b"the model")
    assert len(bucket.puts) == 1
    async with mirroring(s3, blobs, one) as mirror:
        assert await fetched(await address(mirror, one)) == (200, b"the model")
    assert len(bucket.puts) == 1
