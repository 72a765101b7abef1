"""What an operator reads of an alert: what, where, since when, how large, who, and what to do next."""

import io

import msgspec
import pytest
from rich.console import Console, RenderableType

from cloud_hub.monitoring.alert_book import (
    Alert,
    AlertChange,
    AlertDetail,
    AlertEvidence,
    Cause,
    Common,
    DeviceShare,
    Fact,
    ProblemCount,
)
from cloud_hub.monitoring.reference import Reference
from cloud_hub.monitoring.verdict import FeatureEvidence, RateEvidence
from cloud_hub.monitoring.watches import Watch
from cloud_hub.operator import render_alerts

AT = 1_700_000_000.0
FEATURE = FeatureEvidence(
    0, "light", "input", 88.0, 17.0, True, 4, 400, 0.31, 0.2, 0.3, 0.62, ("below", "above"), (500, 500), (100, 300)
)
RATE = RateEvidence("humidity", "missing", 60.0, 17.0, True, 4, 400, 0.41, 0.002)
EVIDENCE = AlertEvidence(
    threshold=17.0,
    since=AT,
    features=(FEATURE,),
    devices=(DeviceShare("cam-1", 0.75, 60.0), DeviceShare("cam-2", 0.25, 20.0)),
    affected=2,
    common=(Common("firmware=2", 2, 2, 1, 9),),
    causes=(Cause(41, AT - 600, "rollout.started", "ann", "r7", "rollout of digits:4"),),
)
ALERT = Alert(
    12, "drift", "digits", 4, "a" * 64, "group:site=north", "open", "critical", None, AT, AT, None, None, EVIDENCE
)


def text(shown: RenderableType) -> str:
    console = Console(width=220, file=io.StringIO())
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_list_has_a_line_for_each_with_what_where_and_who() -> None:
    lines = text(render_alerts.alerts([ALERT])).splitlines()
    assert len(lines) == 2
    for words in (
        "12",
        "critical",
        "drift",
        "digits:4",
        "group:site=north",
        "open",
        "light (input) changed: large",
        "cam-1 75%",
    ):
        assert words in lines[1]
    assert "no alerts" in text(render_alerts.alerts([]))


def test_one_alert_says_everything_that_is_known_and_the_next_step() -> None:
    history = (AlertChange(AT, "hub", "opened", ""), AlertChange(AT, "ann", "acknowledged", "on my way"))
    child = msgspec.structs.replace(ALERT, id=9, scope="device:cam-1", parent=12)
    shown = text(render_alerts.detail(AlertDetail(ALERT, history, (child,))))
    for words in (
        "alert 12: critical drift of digits:4 on devices with site=north, open, since",
        "light (input) changed: large, PSI 0.31, mean +0.62 σ, evidence 88, threshold 17",
        "compared with training",
        "cam-1 75%, cam-2 25%",
        "2 of the devices that were looked at alarm by themselves",
        "common: firmware=2 (2 of 2; of the others 1 of 9)",
        "rollout.started r7  rollout of digits:4",
        "9  drift of device:cam-1",
        "acknowledged by ann  on my way",
        "next: look for what these devices share",
    ):
        assert words in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "snoozed", "snoozed_until": AT + 60}, "snoozed until"),
        ({"state": "resolved", "resolved_at": AT, "evidence": msgspec.structs.replace(EVIDENCE, resolution="normal")},
         "(normal)"),
        ({"parent": 3}, "part of alert 3"),
        ({"evidence": AlertEvidence(17.0, AT, rates=(RATE,))}, "humidity missing in 41.0 % of rows, 0.2 % before"),
        ({"evidence": AlertEvidence(17.0, AT, problems=(ProblemCount("clock", 3, "its clock went back"),))},
         "3 x clock: its clock went back"),
        ({"evidence": AlertEvidence(0.0, AT, facts=(Fact("accuracy", 0.8, 0.9, "accuracy 0.80, 0.90 before"),))},
         "accuracy 0.80, 0.90 before"),
        ({"kind": "clone-suspected", "scope": "device:cam-1"}, "two devices use one key"),
    ],
)  # fmt: skip
def test_every_kind_and_state_is_said_in_words(change: dict[str, object], words: str) -> None:
    alert = msgspec.structs.replace(ALERT, **change)
    assert words in text(render_alerts.detail(AlertDetail(alert, (), ())))


def test_inputs_together_have_a_distance_and_likely_inputs() -> None:
    joint = msgspec.structs.replace(
        EVIDENCE.features[0], index=-1, name="inputs together", psi=0.0, distance=0.7, inputs=("light", "heat")
    )
    alert = msgspec.structs.replace(ALERT, evidence=msgspec.structs.replace(EVIDENCE, features=(joint,)))
    shown = text(render_alerts.detail(AlertDetail(alert, (), ())))
    assert "inputs together go otherwise than in training, most light, heat, distance 0.70 σ" in shown
    assert "PSI" not in shown


def test_what_is_resolved_asks_for_no_next_step() -> None:
    over = msgspec.structs.replace(ALERT, state="resolved", resolved_at=AT)
    assert "next:" not in text(render_alerts.detail(AlertDetail(over, (), ())))


def test_what_modules_are_compared_with_is_a_line_each() -> None:
    watch = Watch("digits", "device:cam-1", Reference("period", AT, AT + 3600), "ann", AT)
    shown = text(render_alerts.watches([watch]))
    assert "period:2023-11-14T22:13:20..2023-11-14T23:13:20" in shown
    assert "all are compared with training data" in text(render_alerts.watches([]))
