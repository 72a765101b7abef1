"""`mooring-hub replica`: the directory of one more replica, and what must be shared before there can be one."""

import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from cloud_hub.bucket.settings import BucketSettings
from cloud_hub.cli import app
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.replicas.joining import ensure_client
from cloud_hub.replicas.settings import ReplicasSettings

SHARED = {
    "database": "postgresql://mooring@db.example.com/mooring",
    "blobs": "s3://models/fleet",
    "bucket": BucketSettings("https://s3.example.com"),
    "broker": "mqtts://broker.example.com:8883",
    "replicas": ReplicasSettings(name="a"),
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def first(tmp_path: Path) -> HubPaths:
    """A hub that shares everything, as far as its settings say."""
    paths = HubPaths(tmp_path / "a")
    result = run("init", str(paths.root), "--dev", "--api-port", "0", "--mqtt-port", "0")
    assert result.exit_code == 0, result.output
    msgspec.structs.replace(HubConfig.load(paths.root), **SHARED).write(paths.root)
    return paths


def name_at_the_broker(paths: HubPaths) -> str:
    found = x509.load_pem_x509_certificate(paths.hub_client_crt.read_bytes()).subject
    return str(found.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_a_replica_has_the_hubs_keys_and_a_name_of_its_own(first: HubPaths, tmp_path: Path) -> None:
    made = HubPaths(tmp_path / "b")
    assert run("replica", str(first.root), str(made.root), "--name", "b").exit_code == 0
    config = HubConfig.load(made.root)
    assert (config.replicas.name, config.replicas.names) == ("b", ("a", "b"))
    assert config.database == SHARED["database"]
    assert name_at_the_broker(made) == "_hub-b"
    for file in (
        *(f"keys/{path.name}" for path in first.keys.iterdir()),
        "ca/device-ca.key",
        "ca/server.key",
        "broker/crl.pem",
        "operator.token",
    ):
        assert (made.root / file).read_bytes() == (first.root / file).read_bytes()
        assert stat.S_IMODE((made.root / file).stat().st_mode) == 0o600
    assert not made.blobs.exists()
    assert not made.database.exists()


@pytest.mark.parametrize(("name", "alone"), [("database", "sqlite"), ("blobs", "folder"), ("broker", ""),
                                             ("replicas", ReplicasSettings())])  # fmt: skip
def test_a_hub_that_has_something_for_itself_has_no_replicas(
    first: HubPaths, tmp_path: Path, name: str, alone: object
) -> None:
    msgspec.structs.replace(HubConfig.load(first.root), **{name: alone}).write(first.root)
    result = run("replica", str(first.root), str(tmp_path / "b"), "--name", "b")
    assert (result.exit_code, "not-shared" in result.output, name in result.output) == (1, True, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("name", ["a", "B", "", "x" * 40])
def test_a_name_that_is_taken_or_none_is_refused(first: HubPaths, tmp_path: Path, name: str) -> None:
    assert run("replica", str(first.root), str(tmp_path / "b"), "--name", name).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_folder_with_something_in_it_and_sealed_keys_are_left_alone(first: HubPaths, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    result = run("replica", str(first.root), str(tmp_path / "b"), "--name", "b")
    assert (result.exit_code, "folder-not-empty" in result.output) == (1, True)
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["mine"]
    (first.root / "sealed").mkdir()
    assert "keys-sealed" in run("replica", str(first.root), str(tmp_path / "c"), "--name", "c").output
    assert not (tmp_path / "c").exists()


def test_a_directory_that_was_copied_takes_its_name_at_the_start(first: HubPaths) -> None:
    config = HubConfig.load(first.root, {"MOORING_HUB_REPLICAS_NAME": "hub-1"})
    ensure_client(first, config)
    assert name_at_the_broker(first) == "_hub-hub-1"
    before = first.hub_client_crt.read_bytes()
    ensure_client(first, config)
    assert first.hub_client_crt.read_bytes() == before
