"""`mooring apply`: a file says how the fleet shall be, and the hub becomes so; a second time there is nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub.test_operator_cli import Operator, device, files, operator, signed  # noqa: F401
from support.devices import EnrolledDevice

FLEET = """
mooring: 1
queries:
  old-agents: agent < 0.2
groups:
  pilot: {devices: [cam-001], description: first to get anything}
  lab: {query: site = lab}
tags:
  cam-001: {site: lab, timezone: Europe/Berlin}
configurations:
  iris: {fleet: {threshold: 0.5}}
rollouts:
  - {module: iris, version: 1, target: group = pilot, groups: ["1", rest], on_failure: pause}
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(FLEET)
    return path


def test_a_fleet_becomes_as_its_file_says_and_then_there_is_nothing_to_do(
    operator: Operator,  # noqa: F811
    signed: str,  # noqa: F811
    device: EnrolledDevice,  # noqa: F811
    fleet: Path,
) -> None:
    del signed, device
    planned = operator.json("apply", "-f", fleet, "--dry-run")
    kinds = [(change["act"], change["kind"]) for change in planned]
    assert kinds == [
        ("create", "query"), ("create", "group"), ("create", "group"), ("change", "tags"),
        ("change", "configuration"), ("roll out", "rollout"),
    ]  # fmt: skip
    assert operator.json("group", "list") == [], "a dry run changes nothing"
    operator.run("apply", "-f", fleet, "--dry-run", "--exit-code", status=3)
    made = operator.run("apply", "-f", fleet, "--yes")
    assert "threshold: 0.5" in made.stdout
    assert "rollout iris:1 to group = pilot: started (rollout r1)" in made.stderr
    assert operator.json("group", "show", "pilot") == ["cam-001"]
    assert operator.json("device", "show", "cam-001")["device"]["tags"]["timezone"] == "Europe/Berlin"
    assert operator.json("rollout", "status", "r1")["rollout"]["plan"]["on_failure"] == "pause"
    assert operator.json("apply", "-f", fleet) == []
    assert "nothing differs" in operator.run("apply", "-f", fleet, "--dry-run", "--exit-code").stdout


def test_a_policy_for_devices_that_only_the_file_tags_is_known_later_and_refuses_nothing(
    operator: Operator,  # noqa: F811
    signed: str,  # noqa: F811
    device: EnrolledDevice,  # noqa: F811
    tmp_path: Path,
) -> None:
    del signed, device
    path = tmp_path / "tags.yaml"
    path.write_text(
        "mooring: 1\ntags: {cam-001: {line: north}}\nsampling: {iris: [{target: line = north, set: {rate: 0.1}}]}\n"
    )
    tags, policy = operator.json("apply", "-f", path, "--dry-run")
    assert (tags["kind"], policy["kind"]) == ("tags", "sampling")
    assert "known later" in policy["lines"][0]["after"]


def test_what_the_file_does_not_name_stays_unless_it_is_pruned(
    operator: Operator,  # noqa: F811
    device: EnrolledDevice,  # noqa: F811
    tmp_path: Path,
) -> None:
    del device
    operator.run("query", "save", "by-hand", "site = paris")
    path = tmp_path / "queries.json"
    path.write_text('{"mooring": 1, "queries": {"mine": {"query": "site = lyon", "description": "the south"}}}')
    operator.run("apply", "-f", path, "--yes")
    assert {"by-hand", "mine"} <= {one["name"] for one in operator.json("query", "list")}
    (*_, last) = operator.json("apply", "-f", path, "--prune", "--dry-run")
    assert last["act"] == "remove"
    operator.run("apply", "-f", path, "--prune", "--yes")
    assert [one["name"] for one in operator.json("query", "list")] == ["mine"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mooring: 2", "expected the format 1, got 2"),
        ("queries: {}", "missing required field `mooring`"),
        ("mooring: 1\ndevises: {}", "unknown field `devises`"),
        ("mooring: 1\ngroups: {pilot: {}}", "expected devices, or a query"),
        ("mooring: 1\nrollouts: [{module: iris}]", "expected a version"),
        ("mooring: 1\nrollouts: [{module: iris, version: 1, rate: {per_minute: 0}}]", "rate: expected"),
        ("[1, 2]", "expected names with values"),
        ("a: &a [*a]", ""),
        ("mooring: 1\nqueries: {bad: 'site ='}", "query"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_and_changes_nothing(
    operator: Operator,  # noqa: F811
    tmp_path: Path,
    text: str,
    words: str,
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    assert words in operator.refused("apply", "-f", path, "--yes")
    assert not [one for one in operator.json("query", "list") if one["name"] == "bad"]
