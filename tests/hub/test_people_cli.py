"""`mooring user`, `token`, `login`, `whoami` and `audit` against a real hub."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.operator.cli import app
from support.serving import serving_hub

PASSWORD = "correct horse battery"


@dataclass(frozen=True)
class Person:
    """Types commands, with a context of their own."""

    paths: HubPaths
    context: Path

    def run(self, *arguments: object, status: int = 0) -> Result:
        environment = {"MOORING_CONTEXT": str(self.context), "COLUMNS": "160"}
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
        assert result.exit_code == status, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: object, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "-o", "json", status=status).stdout)


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    folder = tmp_path_factory.mktemp("people")
    api, mqtt = free_ports(2)
    paths = asyncio.run(initialise(folder / "hub", HubConfig(dev=True, api_port=api, mqtt_port=mqtt)))
    with serving_hub(paths):
        yield Person(paths, paths.context)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    return file


def log_in(admin: Person, folder: Path, name: str, secret: Path, status: int = 0) -> Person:
    person = Person(admin.paths, folder / f"{name}.toml")
    url, ca = HubConfig.load(admin.paths.root).api_url, admin.paths.server_ca_crt
    person.run("login", url, "--user", name, "--ca", ca, "--password-file", secret, status=status)
    return person


def test_a_user_is_added_logs_in_and_is_kept_out_again(admin: Person, tmp_path: Path, secret: Path) -> None:
    added = admin.json("user", "add", "ann", "--role", "operator", "--scope", "site=lab", "--password-file", secret)
    assert (added[0]["name"], added[0]["role"]) == ("ann", "operator")
    ann = log_in(admin, tmp_path, "ann", secret)
    assert ann.json("whoami")["actor"] == "user:ann"
    assert "site=lab" in ann.run("whoami").stdout
    assert "expected the role admin" in ann.run("user", "list", status=1).stderr
    changed = admin.json("user", "change", "ann", "--role", "viewer")
    assert (changed[0]["role"], changed[0]["scope"]) == ("viewer", "site=lab")
    admin.run("--reason", "left the company", "user", "disable", "ann")
    assert "not known" in ann.run("whoami", status=1).stderr
    log_in(admin, tmp_path, "ann", secret, status=1)
    admin.run("user", "enable", "ann")
    assert log_in(admin, tmp_path, "ann", secret).json("whoami")["role"] == "viewer"
    events = admin.json("audit", "list", "--kind", "user.changed", "--subject", "ann")
    assert [event["details"].get("reason") for event in events] == [None, "left the company", None]
    assert "ann" in admin.run("user", "list").stdout


def test_without_a_terminal_a_password_is_not_asked_for_and_the_option_is_named(admin: Person) -> None:
    command = [str(Path(sys.executable).with_name("mooring")), "user", "add", "eve"]
    environment = {**os.environ, "MOORING_CONTEXT": str(admin.context)}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False}
    # A session of its own has no terminal, whatever runs the tests.
    run = subprocess.run(command, env=environment, input=PASSWORD, start_new_session=True, **options)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error: no terminal to ask for the password for eve on: give --password-file FILE")
    assert len(run.stderr.splitlines()) == 1
    assert "eve" not in [user["name"] for user in admin.json("user", "list")]


def test_a_user_sets_a_password_of_their_own(admin: Person, tmp_path: Path, secret: Path) -> None:
    admin.run("user", "add", "bob", "--password-file", secret)
    bob = log_in(admin, tmp_path, "bob", secret)
    fresh = tmp_path / "fresh"
    fresh.write_text("another long password\n")
    bob.run("user", "password", "bob", "--password-file", fresh, "--current-file", secret)
    log_in(admin, tmp_path, "bob", secret, status=1)
    log_in(admin, tmp_path, "bob", fresh).run("logout")


def test_a_service_token_is_made_used_and_revoked(admin: Person, tmp_path: Path) -> None:
    made = admin.run("token", "create", "ci", "--role", "publisher", "--days", "1")
    token = tmp_path / "ci.token"
    token.write_text(made.stdout)
    ci = Person(admin.paths, tmp_path / "ci.toml")
    url = HubConfig.load(admin.paths.root).api_url
    ci.run("login", url, "--token-file", token, "--ca", admin.paths.server_ca_crt)
    assert (ci.json("whoami")["name"], ci.json("whoami")["role"]) == ("ci", "publisher")
    (row,) = [row for row in admin.json("token", "list") if row["name"] == "ci"]
    assert made.stdout.strip() not in admin.run("token", "list").stdout
    admin.run("token", "revoke", row["id"])
    ci.run("whoami", status=1)
    ci.run("login", url, "--token-file", token, "--ca", admin.paths.server_ca_crt, status=1)


def test_login_does_not_write_over_the_context_of_a_hub(admin: Person, secret: Path) -> None:
    url, before = HubConfig.load(admin.paths.root).api_url, admin.paths.context.read_text()
    login = ("login", url, "--ca", admin.paths.server_ca_crt, "--user", "ann", "--password-file", secret)
    admin.run("--context", admin.paths.context, *login, status=2)
    assert admin.paths.context.read_text() == before


def test_login_takes_either_a_token_or_a_user(admin: Person, secret: Path) -> None:
    url, ca = HubConfig.load(admin.paths.root).api_url, admin.paths.server_ca_crt
    admin.run("login", url, "--ca", ca, status=2)
    admin.run("login", url, "--ca", ca, "--user", "ann", "--token-file", secret, status=2)


def test_the_audit_trail_is_exported_and_verified(admin: Person, tmp_path: Path) -> None:
    admin.run("token", "create", "audited")
    assert "the chain holds" in admin.run("audit", "verify").stdout
    file = tmp_path / "events.ndjson"
    admin.run("audit", "export", file)
    verdict = admin.json("audit", "verify", file)
    assert verdict["breaks"] == []
    head = f"{verdict['head']['id']}:{verdict['head']['hash']}"
    assert head in admin.run("audit", "verify", "--head", head).stdout.replace("\n", "")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]))
    assert "is not there any more" in admin.run("audit", "verify", file, "--head", head, status=1).stdout
    file.write_text("".join(lines[:1] + lines[2:]))
    assert "the chain is broken" in admin.run("audit", "verify", file, status=1).stdout
    file.write_text(lines[0].replace("operator", "mallory").replace("hub", "mallory") + "".join(lines[1:]))
    admin.run("audit", "verify", file, status=1)
    file.write_text("nonsense\n")
    assert "line 1: expected an event" in admin.run("audit", "verify", file, status=1).stderr
    admin.run("audit", "verify", file, "--head", "7", status=2)
