"""Sampling policies and commands on a terminal, and what the options of their commands may say."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from cloud_hub.asking import words
from cloud_hub.asking.book import AskedCommand
from cloud_hub.asking.policies import DevicePolicy
from cloud_hub.operator import render_asking
from cloud_hub.operator.cli import app
from modules.manifest import SamplingPolicy
from modules.sampling import Redaction, Stratum

POLICY = SamplingPolicy(
    rate=0.01,
    strata=(Stratum("hot", 0.5, "between", "x[temp]", at_least=30.0),),
    quota_bytes_per_day=5_000_000,
    redact={"face": Redaction("blur", 8.0, (0, 0, 40, 60))},
    ring_rows=1000,
    blob_bytes=65_536,
)


def shown(what: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=240)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def device(name: str, policy: SamplingPolicy = POLICY, changed: dict[str, list[object]] | None = None) -> DevicePolicy:
    return DevicePolicy(name, 3, "pi", True, "0.2.0", policy, changed or {})


def test_devices_with_the_same_policy_share_a_line() -> None:
    text = shown(render_asking.policies([device("cam-1"), device("cam-2"), device("cam-3", SamplingPolicy())]))
    (line,) = (line for line in text.splitlines() if "cam-1" in line)
    for part in (
        "cam-1, cam-2",
        "hot=0.5:x[temp]>=30",
        "4.8 MiB",
        "face blur 0,0,40,60 by 8",
        "1000 rows",
    ):
        assert part in line
    assert "above 64.0 KiB" in line
    assert any("cam-3" in line and "0.01" in line for line in text.splitlines())
    assert "no device holds the module" in shown(render_asking.policies([]))


@pytest.mark.parametrize(
    "text",
    [
        "a=1:confidence<0.6", "a=0.5:margin<0.1", "a=1:out-of-range", "a=1:out-of-range(x[3])", "a=1:missing(x[3])",
        "a=1:x[3]<2", "a=1:1<=x[3]<2", "a=1:class=cat", "a=1:word=red",
    ],
)  # fmt: skip
def test_a_stratum_is_shown_as_it_is_given(text: str) -> None:
    name, rest = words.stratum(text)
    policy = SamplingPolicy(strata=(Stratum(name, **rest),))
    assert text in shown(render_asking.policies([device("cam-1", policy)]))


def test_changes_say_before_and_after_and_for_how_many() -> None:
    changed: dict[str, list[object]] = {"rate": [0.01, 0.5], "ring_rows": [None, 100]}
    found = [device(f"cam-{number}", changed=changed) for number in range(60)]
    text = shown(render_asking.changes(found, dry_run=True))
    assert "60 devices would change" in text
    assert "and 10 more" in text
    assert "0.01" in text
    assert "0.5" in text
    assert "change with their next contact" in shown(render_asking.changes(found, dry_run=False))


def test_commands_say_what_was_asked_and_what_came() -> None:
    done = AskedCommand(
        "c-1", "cam-1", "samples", "digits", {"stratum": "hot", "limit": 5}, "done", 0.0, "ann", 9.0, 1.0, 2.0, "", "",
        4, 5, 3,
    )  # fmt: skip
    for text in (shown(render_asking.commands([done])), shown(render_asking.command(done))):
        assert "stratum hot, at most 5" in text
        assert "3 of 4" in text
    none = AskedCommand(
        "c-2", "cam-1", "samples", "digits", {"last": 4, "since": 1.0}, "done", 0.0, "ann", 9.0, 1.0, 2.0, "", "",
        0, 0, 0,
    )  # fmt: skip
    text = shown(render_asking.command(none))
    assert "rows 0 to 4, since 1970-01-01" in text
    assert "nothing kept fits" in text
    everything = AskedCommand(
        "c-3", "cam-1", "logs", "", {"last_s": 0.0, "limit": 3}, "done", 0.0, "ann", 9.0, 1.0, 2.0, "", "", 0, 0, 0,
    )  # fmt: skip
    assert "logs at most 3" in shown(render_asking.commands([everything]))
    assert "nothing was asked" in shown(render_asking.commands([]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sampling set m --stratum hot", "NAME=RATE:CONDITION"),
        ("sampling set m --redact x=burn", "NAME=ACTION"),
        ("sampling set m --quota plenty", "5MB"),
        ("sampling set m --rate 2", "--rate"),
        ("samples request --device d --module m --range 5", "A:B"),
        ("samples request --device d --module m --range 5:3", "first up to the last"),
        ("samples request --device d --module m --since yesterday", "2h ago"),
        ("samples request --device d --module m --expires 400d", "expires_s"),
        ("samples request --device d --module m --last 501", "--last"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_anybody_is_asked(arguments: str, words: str) -> None:
    result = CliRunner().invoke(app, arguments.split(), env={"COLUMNS": "200", "MOORING_CONTEXT": "/nowhere"})
    assert result.exit_code == 2, result.output
    assert words in result.output
