"""Several hubs for one person: names, the one that counts, and files that are named by their path."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud_hub.operator import contexts
from cloud_hub.operator.cli.root import app
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.errors import ContextError


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Two hubs, lyon and paris."""
    here = {"XDG_CONFIG_HOME": str(tmp_path)}
    for name in ("lyon", "paris"):
        HubContext(f"https://{name}:8443", "secret", "ca.crt").write(contexts.path_of(name, here))
    return here


def test_the_chosen_hub_counts_where_none_is_named(environment: dict[str, str]) -> None:
    assert contexts.default_path(environment).name == "context.toml"
    contexts.use("lyon", environment)
    assert contexts.default_path(environment) == contexts.path_of("lyon", environment)
    assert [(one.name, one.url, one.current) for one in contexts.known(environment)] == [
        ("lyon", "https://lyon:8443", True), ("paris", "https://paris:8443", False),
    ]  # fmt: skip
    assert contexts.default_path(environment | {"MOORING_CONTEXT": "paris"}).stem == "paris"
    assert contexts.default_path(environment | {"MOORING_CONTEXT": "/hub/context.toml"}) == Path("/hub/context.toml")


def test_a_hub_that_is_forgotten_counts_no_more(environment: dict[str, str]) -> None:
    contexts.use("lyon", environment)
    contexts.remove("lyon", environment)
    assert contexts.current(environment) == ""
    with pytest.raises(ContextError, match="no context 'lyon'"):
        contexts.remove("lyon", environment)


@pytest.mark.parametrize("name", ["", "../etc", "a b", "x" * 64, "über"])
def test_a_name_that_could_be_a_path_is_refused(environment: dict[str, str], name: str) -> None:
    with pytest.raises(ContextError, match="expected a name"):
        contexts.use(name, environment)
    with pytest.raises(ContextError, match="expected a name"):
        contexts.remove(name, environment)


def test_the_command_lists_chooses_and_completes(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner(env=environment)
    assert "lyon" in runner.invoke(app, ["context", "list"]).stdout
    assert "commands go to paris" in runner.invoke(app, ["context", "use", "paris"]).stderr
    listed = runner.invoke(app, ["context", "list", "-o", "yaml"]).stdout
    assert "- name: paris\n  url: https://paris:8443\n  current: true\n" in listed
    assert "no context 'rome'; `mooring context list`" in runner.invoke(app, ["context", "use", "rome"]).stderr
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    from cloud_hub.operator.cli.contexts import complete

    assert complete("l") == ["lyon"]
