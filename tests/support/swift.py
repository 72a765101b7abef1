"""OpenStack Swift as an S3-compatible store for long tests: a real one, which checks signatures and keeps to disks.

One disk, one replica, four processes in a folder of their own. Its programs come from PyPI (`pip install swift`, in a
virtual environment of its own: it wants other versions than this one); MOORING_TEST_SWIFT names the folder they are in.
Configuration after Swift's deployment guide and the reference of its S3 middleware.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloud_hub.bucket.settings import BucketSettings
from cloud_hub.initialise import free_ports
from support.waiting import until_blocking

START_S = 60
USER, KEY = "test:tester", "testing"
KINDS = ("account", "container", "object")
_COMMON = "swift_dir = {folder}\nuser = root\nworkers = 1\nlog_address = /dev/null\nbind_ip = 127.0.0.1\n"
_SERVER = """\
[DEFAULT]
{common}bind_port = {port}
devices = {folder}/disks
mount_check = false
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """\
[DEFAULT]
{common}bind_port = {port}
[pipeline:main]
pipeline = catch_errors gatekeeper cache listing_formats s3api tempauth bulk slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
_SWIFT = """\
[swift-hash]
swift_hash_path_prefix = a
swift_hash_path_suffix = b
[storage-policy:0]
name = one
default = yes
"""


def programs() -> Path | None:
    """Where Swift's are; None where it is not installed."""
    named = Path(os.environ.get("MOORING_TEST_SWIFT", "/nowhere"))
    return named if (named / "swift-proxy-server").is_file() else None


@contextmanager
def running_swift(folder: Path) -> Iterator[BucketSettings]:
    """A store with nothing in it; a bucket is made by `make_bucket`."""
    binaries = programs()
    assert binaries is not None
    (folder / "disks" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(_SWIFT)
    *ports, proxy = free_ports(len(KINDS) + 1)
    common = _COMMON.format(folder=folder)
    for kind, port in zip(KINDS, ports, strict=True):
        _ring(binaries, folder, kind, port)
        (folder / f"{kind}.conf").write_text(_SERVER.format(common=common, folder=folder, kind=kind, port=port))
    (folder / "proxy.conf").write_text(_PROXY.format(common=common, port=proxy))
    environment = {**os.environ, "SWIFT_DIR": str(folder)}
    environment.pop("PYTHONPATH", None)
    with (folder / "log").open("wb") as log:
        running = [
            subprocess.Popen(
                [binaries / f"swift-{kind}-server", folder / f"{kind}.conf"], env=environment, stdout=log, stderr=log
            )
            for kind in (*KINDS, "proxy")
        ]
    settings = BucketSettings(f"http://127.0.0.1:{proxy}", "us-east-1", str(_credentials(folder)))
    try:
        until_blocking(lambda: _answers(settings), "Swift to answer", START_S)
        yield settings
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(START_S)


def make_bucket(settings: BucketSettings, name: str) -> None:
    """A PUT of the bucket itself, signed as any."""
    import boto3  # type: ignore[import-untyped]  # of moto's

    boto3.client(
        "s3", endpoint_url=settings.endpoint, region_name="us-east-1", aws_access_key_id=USER, aws_secret_access_key=KEY
    ).create_bucket(Bucket=name)


def _ring(binaries: Path, folder: Path, kind: str, port: int) -> None:
    builder = folder / f"{kind}.builder"
    for words in (("create", "4", "1", "0"), ("add", f"r1z1-127.0.0.1:{port}/d1", "1"), ("rebalance",)):
        subprocess.run([binaries / "swift-ring-builder", builder, *words], check=True, capture_output=True, timeout=60)


def _credentials(folder: Path) -> Path:
    path = folder / "bucket.toml"
    path.touch(0o600)
    path.write_text(f'access_key_id = "{USER}"\nsecret_access_key = "{KEY}"\n')
    return path


def _answers(settings: BucketSettings) -> bool:
    try:
        make_bucket(settings, "first")
    except Exception:
        return False
    return True
