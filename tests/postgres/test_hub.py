"""A whole hub on PostgreSQL: made, examined, and refused where it cannot be made."""

from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from cloud_hub.cli import app
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest
from cloud_hub.store.address import PASSWORD_VARIABLE, database_url
from support.postgres import PASSWORD, Postgres

run = CliRunner().invoke


def tables(postgres: Postgres, name: str) -> int:
    with psycopg.connect(postgres.url(name)) as connection:
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert row is not None
    return int(row[0])


def test_a_hub_is_made_in_an_empty_database_and_found_well(postgres: Postgres, tmp_path: Path) -> None:
    postgres.create("fresh")
    url = postgres.loopback_url("fresh")
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    folder = tmp_path / "hub"
    options = ["--dev", "--api-port", "0", "--mqtt-port", "0", "--database", url]
    made = run(app, ["init", str(folder), *options, "--database-password-file", str(password)])
    assert made.exit_code == 0, made.output
    assert not HubPaths(folder).database.exists()
    assert PASSWORD not in (folder / "hub.toml").read_text()
    assert tables(postgres, "fresh") > 20
    told = run(app, ["doctor", str(folder)]).output
    assert "PostgreSQL" in told
    assert "fsync, full_page_writes, synchronous_commit off" in " ".join(told.split()), "as the tests' server is"
    assert "removed 0 windows" in run(app, ["gc", str(folder)]).output
    password.write_text("another")
    told = run(app, ["gc", str(folder)]).output
    assert "database-unreachable" in told
    assert "password authentication failed" in " ".join(told.split())
    assert "another" not in told
    postgres.drop("fresh")


def test_a_database_that_holds_something_is_left_as_it_is(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.create("taken")
    postgres.execute("CREATE TABLE precious (id int)", "taken")
    made = run(app, ["init", str(tmp_path / "hub"), "--dev", "--database", url])
    assert made.exit_code == 1
    assert "database-not-empty" in made.output
    assert not (tmp_path / "hub").exists()
    assert tables(postgres, "taken") == 1
    postgres.drop("taken")


def test_a_hub_that_could_not_be_made_leaves_the_database_empty(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cloud_hub.initialise.write_private", fail)
    url = postgres.create("half")
    made = run(app, ["init", str(tmp_path / "hub"), "--dev", "--database", url])
    assert made.exit_code == 1, made.output
    assert tables(postgres, "half") == 0
    postgres.drop("half")


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    made = run(app, ["init", str(tmp_path / "hub"), "--dev", "--database", "postgresql://mooring@127.0.0.1:1/hub"])
    assert made.exit_code == 1
    assert "database-unreachable" in made.output
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        "mysql://hub",
        "postgresql://hub.example.com",
        "postgresql://mooring:geheim@hub.example.com/hub",
        "postgresql://mooring@hub.example.com/hub?password=geheim",
        "postgresql://[::1/hub",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_not_repeated(wrong: str) -> None:
    with pytest.raises(ValueError, match="database: expected") as caught:
        HubConfig(database=wrong)
    assert "geheim" not in str(caught.value)


def test_the_password_comes_from_its_file_or_the_environment_and_is_not_printed(tmp_path: Path) -> None:
    config = HubConfig(database="postgresql://mooring@hub.example.com:5433/hub?sslmode=verify-full")
    url = database_url(config, HubPaths(tmp_path), {PASSWORD_VARIABLE: "geheim"})
    assert (url.password, url.port, url.query["sslmode"]) == ("geheim", 5433, "verify-full")
    assert "geheim" not in str(url)
    absent = HubConfig(database=config.database, database_password_file=str(tmp_path / "none"))
    with pytest.raises(BadRequest, match="No such file"):
        database_url(absent, HubPaths(tmp_path), {})
