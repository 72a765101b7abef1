"""CloudEvents as the specification asks for them, and who may have which."""

import ast
import re
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as TheirEvent
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.chain import Event
from cloud_hub.events import Events, Visible
from cloud_hub.outward.choice import Choice, wants
from cloud_hub.outward.cloud_events import MAX_BYTES, MEDIA_TYPE, cloud_event, encode, ping
from cloud_hub.outward.kinds import PRIVATE, PUBLIC, checked_patterns, chosen, family
from cloud_hub.store.engine import Store

SOURCE = "https://hub.example.com:8443"
EVENT = Event(
    7, 1_700_000_000.25, "alert.opened", "hub", "digits", {"alert": 3, "severity": "critical"}, "0", "ab" * 32
)


def theirs(body: bytes) -> TheirEvent:
    found = from_http_event(HTTPMessage({"content-type": MEDIA_TYPE}, body))
    assert isinstance(found, TheirEvent)
    return found


def test_the_projects_own_library_reads_every_attribute() -> None:
    event = theirs(encode(cloud_event(EVENT, SOURCE)))
    assert event.get_specversion() == "1.0"
    assert event.get_id() == "7-abababababababab"
    assert event.get_source() == SOURCE
    assert event.get_type() == "io.mooring.alert.opened"
    assert event.get_subject() == "digits"
    assert event.get_time() == datetime(2023, 11, 14, 22, 13, 20, 250000, UTC)
    assert event.get_datacontenttype() == "application/json"
    assert event.get_extension("severity") == "critical"
    assert event.get_extension("actor") == "hub"
    assert event.get_extension("sequence") == "00000000000000000007"
    assert event.get_data() == {"alert": 3, "severity": "critical"}


def test_a_ping_is_a_cloud_event_too() -> None:
    assert theirs(encode(ping(SOURCE, "wh-1", "00ff", 1_700_000_000.0, "alice"))).get_id() == "ping-00ff"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(
    number=st.integers(1, 2**53),
    at=st.floats(0, 4e9),
    subject=st.text(max_size=200).filter(lambda text: text.isprintable()),
    details=st.dictionaries(st.text(max_size=20), JSON, max_size=5),
)
def test_whatever_happened_is_a_valid_event_with_the_attributes_that_must_be_there(
    number: int, at: float, subject: str, details: dict[str, object]
) -> None:
    event = Event(number, at, "device.tagged", "alice", subject, details, "0", "cd" * 32)
    body = encode(cloud_event(event, SOURCE))
    plain = msgspec.json.decode(body)
    assert {"id", "source", "specversion", "type", "data"} <= plain.keys()
    assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in plain)  # names of attributes, section 3
    assert all(isinstance(value, str) and value for name, value in plain.items() if name != "data")
    assert JSONFormat().read(None, body).get_data() == plain["data"]


def test_details_that_are_too_long_are_left_out_and_it_says_so() -> None:
    long = msgspec.structs.replace(EVENT, details={"text": "x" * MAX_BYTES})
    body = encode(cloud_event(long, SOURCE))
    assert len(body) < MAX_BYTES
    assert theirs(body).get_data()["truncated"] is True  # type: ignore[call-overload, index]


def test_the_same_number_after_a_restore_has_another_id() -> None:
    other = msgspec.structs.replace(EVENT, hash="ef" * 32)
    assert cloud_event(EVENT, SOURCE).id != cloud_event(other, SOURCE).id


async def test_the_id_is_that_of_the_audit_trail(store: Store, events: Events) -> None:
    async with store.write() as connection:
        await events.record(connection, "module.built", "alice", "digits:1")
    (event,) = await events.list()
    assert cloud_event(event, SOURCE).id == f"{event.id}-{event.hash[:16]}"


def recorded_kinds(repository: Path) -> set[str]:
    """The kinds in the hub's code: the first word with a dot in a call of `record` or in a conditional before it."""
    found: set[str] = set()
    for path in (repository / "cloud_hub").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("record", "_record"):
                found |= {word for argument in node.args for word in _words(argument)}
    return found


def _words(argument: ast.expr) -> set[str]:
    said = set()
    for node in ast.walk(argument):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = re.match(r"([a-z-]+)\.([a-z-]*)$", node.value)
            said |= {node.value} if match else set()
    return said


def test_every_kind_that_the_hub_records_has_its_place(repository: Path) -> None:
    kinds = recorded_kinds(repository)
    assert {"device.enrolled", "session.opened"} <= kinds
    assert {kind for kind in kinds if family(kind) not in PUBLIC | PRIVATE} == set()
    assert PUBLIC.isdisjoint(PRIVATE)


@pytest.mark.parametrize("kind", ["session.opened", "user.created", "api-token.created", "token.created", "odd.kind"])
def test_what_is_about_people_and_their_tokens_stays_inside(kind: str) -> None:
    assert not chosen(kind, ("*",))
    assert not chosen(kind, (kind,))


@pytest.mark.parametrize(
    ("patterns", "fits"),
    [
        (("*",), {"alert.opened", "alert.resolved", "rollout.failed"}),
        (("alert.*",), {"alert.opened", "alert.resolved"}),
        (("alert",), {"alert.opened", "alert.resolved"}),
        (("alert.opened", "rollout.*"), {"alert.opened", "rollout.failed"}),
    ],
)
def test_patterns_choose_kinds(patterns: tuple[str, ...], fits: set[str]) -> None:
    kinds = ("alert.opened", "alert.resolved", "rollout.failed")
    assert checked_patterns(patterns) == patterns
    assert {kind for kind in kinds if chosen(kind, patterns)} == fits


def event(kind: str, subject: str = "", **details: object) -> Event:
    return Event(1, 0.0, kind, "hub", subject, details, "", "0" * 64)


def test_a_choice_by_module_and_severity() -> None:
    choice = Choice(module="digits", severity="critical")
    assert wants(choice, event("alert.opened", "digits", module="digits", severity="critical"), None)
    assert not wants(choice, event("alert.opened", "digits", module="digits", severity="warning"), None)
    assert not wants(choice, event("alert.opened", "faces", module="faces", severity="critical"), None)
    assert wants(choice, event("module.built", "digits:2"), None)
    assert not wants(choice, event("module.built", "faces:2"), None)


def test_a_scope_lets_nothing_through_that_is_not_about_its_devices_alone() -> None:
    choice, mine = Choice(), Visible({"cam-1"}, {"r-1"})
    passing = [
        event("device.enrolled", "cam-1"), event("rollout.created", "r-1"), event("module.built", "digits:1"),
        event("alert.opened", "digits", scope="device:cam-1"),
    ]  # fmt: skip
    kept = [
        event("device.enrolled", "cam-2"), event("rollout.created", "r-2"), event("alert.opened", scope="fleet"),
        event("alert.opened", "digits", scope="device:cam-2"), event("alert.opened", "digits"),
        event("alert.opened", scope="group:site=lab"), event("dataset.built", "d-1"), event("webhook.created", "wh-1"),
    ]  # fmt: skip
    assert [wants(choice, one, mine) for one in passing] == [True] * len(passing)
    assert [wants(choice, one, mine) for one in kept] == [False] * len(kept)
