"""A hub without offline keys, and the `mooring` command of those who hold them: sign, rotate, revoke, end to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.operator.cli import app
from support.built import iris, rows
from support.devices import PROFILE
from support.waiting import until_blocking

HUB_COMMAND = str(Path(sys.executable).with_name("mooring-hub"))


@dataclass(frozen=True)
class Person:
    """Types commands to one hub, with keys in a folder of their own."""

    paths: HubPaths
    keys: Path

    def run(self, *arguments: object, status: int = 0, secret: str = "") -> Result:
        environment = {"MOORING_CONTEXT": str(self.paths.context), "COLUMNS": "160", "MOORING_KEY_PASSPHRASE": secret}
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
        assert result.exit_code == status, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: object, secret: str = "") -> Any:
        return json.loads(self.run(*arguments, "-o", "json", secret=secret).stdout)

    def key(self, name: str) -> Path:
        return self.keys / f"{name}.pem"

    def public(self, name: str) -> Path:
        """Of a key that is made now."""
        self.run("key", "new", name, "--out", self.key(name))
        return self.keys / f"{name}.pub"

    def keyid(self, name: str) -> str:
        (key,) = self.json("key", "list", self.key(name))
        return str(key["keyid"])

    def build(self, model: str, publisher: str = "") -> str:
        """A module of the model's first version, not signed; as NAME:VERSION/PROFILE."""
        folder = self.keys.parent
        (folder / "model.onnx").write_bytes(iris(1))
        np.savez(folder / "train.npz", X=rows(150))
        self.run("model", "register", model, folder / "model.onnx")
        options = ("--publisher", publisher) if publisher else ()
        self.run("module", "build", f"{model}:1", "-p", PROFILE, "--reference", folder / "train.npz", *options)
        return f"{model}:1/{PROFILE}"


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """A hub as `mooring-hub serve` runs it, made without --dev, and the folder of its offline keys."""
    folder = tmp_path_factory.mktemp("offline")
    api, mqtt = free_ports(2)
    config = HubConfig(
        api_host="127.0.0.1", api_port=api, mqtt_host="127.0.0.1", mqtt_port=mqtt, publisher="acme"
    )  # not a development hub
    paths = asyncio.run(initialise(folder / "hub", config, folder / "keys"))
    ready, log = folder / "ready.json", folder / "log"
    with log.open("wb") as output:
        arguments = [HUB_COMMAND, "serve", str(paths.root), "--ready-file", str(ready)]
        process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)
    try:
        until_blocking(lambda: ready.exists() or process.poll() is not None, "the hub to be ready", 40)
        assert process.poll() is None, log.read_text()
        yield Person(paths, folder / "keys")
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_hub_holds_no_offline_key_and_says_where_to_sign(person: Person) -> None:
    module = person.build("unsigned")
    held = {path.stem for path in person.paths.keys.iterdir()}
    assert {path.stem for path in person.keys.glob("*.pem")} & held == set()
    refused = person.run("module", "sign", module, status=1).stderr
    assert "does not hold it" in refused
    assert "mooring module sign --key" in refused


def test_a_module_signed_with_the_publisher_s_own_key_verifies_from_the_pinned_root(person: Person) -> None:
    module = person.build("digits")
    (outcome,) = person.json("module", "sign", module, "--key", person.key("publisher-acme"))
    assert outcome["published"] is True
    found = person.json("module", "verify", module, "--root", person.keys / "image.root.json")
    assert found["release_counter"] == 1
    (outcome,) = person.json("module", "sign", module, "--key", f"file2:{person.key('publisher-acme')}")
    assert outcome["notes"] == [f"modules/acme/digits/1/{PROFILE}.json has release counter 2"]
    assert person.json("module", "verify", module)["release_counter"] == 2
    assert person.json("module", "show", module)[0]["release_counter"] == 2


def test_a_key_that_is_not_the_publisher_s_signs_nothing(person: Person) -> None:
    module = person.build("guarded")
    refused = person.run("module", "sign", module, "--key", person.key("image-targets"), status=1).stderr
    assert "not a key of this role" in refused
    assert person.json("module", "show", module)[0]["release_counter"] is None


def test_a_root_of_another_hub_makes_the_publisher_sign_nothing(person: Person) -> None:
    module = person.build("elsewhere")
    key, foreign = person.key("publisher-acme"), person.keys / "director.root.json"
    refused = person.run("module", "sign", module, "--key", key, "--root", foreign, status=1).stderr
    assert "nothing was signed" in refused


def test_a_second_publisher_comes_signs_and_goes(person: Person) -> None:
    public, targets = person.public("publisher-lab"), person.key("image-targets")
    person.run("trust", "add-publisher", "lab", "--public-key", public, "--targets-key", targets, "--yes")
    module = person.build("measured", publisher="lab")
    person.run("module", "sign", module, "--key", person.key("publisher-lab"))
    assert person.json("module", "verify", module)["target"].startswith("modules/lab/")
    (outcome,) = person.json("trust", "revoke-publisher", "lab", "--targets-key", targets, "--yes")
    assert outcome["published"] is True
    assert "not in the image repository" in person.run("module", "verify", module, status=1).stderr
    refused = person.run("module", "sign", module, "--key", person.key("publisher-lab"), status=1).stderr
    assert "nothing is delegated to it" in refused


def test_two_of_two_sign_one_after_the_other(person: Person) -> None:
    options = [part for name in ("duo-1", "duo-2") for part in ("--public-key", person.public(name))]
    targets = person.key("image-targets")
    person.run("trust", "add-publisher", "duo", *options, "--threshold", 2, "--targets-key", targets, "--yes")
    module = person.build("shared", publisher="duo")
    (outcome,) = person.json("module", "sign", module, "--key", person.key("duo-1"))
    assert (outcome["published"], outcome["threshold"]) == (False, 2)
    assert [one["role"] for one in person.json("module", "pending")] == ["duo"]
    second = person.run("module", "sign", module, "--append", "--key", person.key("duo-2"))
    assert f"modules/duo/shared/1/{PROFILE}.json with release counter 1" in second.stderr
    assert "published" in second.stdout
    assert person.json("module", "verify", module)["release_counter"] == 1


@pytest.mark.parametrize("repository", ["image", "director"])
def test_two_people_rotate_a_root_key_and_old_roots_lead_to_the_new_one(person: Person, repository: str) -> None:
    first, second, third = (f"{repository}-root-{number}" for number in (1, 2, 3))
    public = person.public(f"{repository}-root-4")
    kept = [part for name in (first, second) for part in ("--keep", person.keyid(name)[:10])]
    (outcome,) = person.json(
        "trust", "rotate-root", "--repository", repository, "--old-key", person.key(first),
        *kept, "--new-key", public, "--yes",
    )  # fmt: skip
    assert outcome["published"] is False
    assert [one["repository"] for one in person.json("trust", "pending")] == [repository]
    told = person.run("trust", "sign", f"{repository}/root", "--key", person.key(second), "--yes")
    assert f"key {person.keyid(third)} goes" in told.stderr
    roles = person.json("trust", "status")["roles"]
    root = next(role for role in roles if (role["repository"], role["role"]) == (repository, "root"))
    assert root["version"] == 2
    assert person.keyid(f"{repository}-root-4") in {key["keyid"] for key in root["keys"]}
    # A key that is gone signs no further root.
    refused = person.run(
        "trust", "rotate-root", "--repository", repository, "--old-key", person.key(third), "--yes", status=1
    )
    assert "not a key of this role" in refused.stderr


def test_targets_and_a_publisher_are_renewed_for_another_year(person: Person) -> None:
    (targets,) = person.json("trust", "renew", "--targets-key", person.key("image-targets"), "--days", 700, "--yes")
    (acme,) = person.json("module", "renew", "acme", "--key", person.key("publisher-acme"), "--days", 700)
    assert targets["published"]
    assert acme["published"]
    assert person.json("trust", "status")["warnings"] == []


def test_nothing_is_signed_unless_the_person_says_so(person: Person) -> None:
    refused = person.run("trust", "renew", "--targets-key", person.key("image-targets"), status=1)
    assert "sign this?" in refused.stderr


def test_trust_status_shows_keys_thresholds_and_who_signs(person: Person) -> None:
    shown = person.run("trust", "status").stdout
    assert "2 of 3" in shown
    assert "the hub" in shown
    assert "its key holders" in shown


def test_an_encrypted_key_signs_with_its_passphrase_only(person: Person) -> None:
    key = person.key("publisher-sealed")
    person.run("key", "new", "publisher-sealed", "--out", key, "--passphrase", secret="correct horse")
    assert key.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in key.read_bytes()
    targets, public = person.key("image-targets"), key.with_suffix(".pub")
    person.run("trust", "add-publisher", "sealed", "--public-key", public, "--targets-key", targets, "--yes")
    module = person.build("kept", publisher="sealed")
    assert "passphrase" in person.run("module", "sign", module, "--key", key, secret="wrong", status=1).stderr
    (outcome,) = person.json("module", "sign", module, "--key", key, secret="correct horse")
    assert outcome["published"] is True


@pytest.mark.parametrize("scheme", ["ed25519", "ecdsa-p256", "rsa-3072"])
def test_keys_of_every_scheme_are_made_listed_and_not_overwritten(person: Person, tmp_path: Path, scheme: str) -> None:
    out = tmp_path / "publisher-x.pem"
    (made,) = person.json("key", "new", "publisher-x", "--out", out, "--scheme", scheme)
    private, public = person.json("key", "list", tmp_path)
    assert {private["keyid"], public["keyid"]} == {made["keyid"]}
    assert (private["private"], public["private"], private["role"]) == (True, False, "publisher x")
    assert "already" in person.run("key", "new", "publisher-x", "--out", out, status=1).stderr


def test_a_private_key_that_others_may_read_is_not_used(person: Person, tmp_path: Path) -> None:
    key = tmp_path / "open.pem"
    person.run("key", "new", "open", "--out", key)
    key.chmod(0o644)
    assert "others may read it" in person.run("key", "list", key, status=1).stderr
