"""The routes of labels and quality, through the real application."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from cloud_hub.api import labels
from cloud_hub.api.app import application
from cloud_hub.blobs import Blobs
from cloud_hub.config import HubConfig
from cloud_hub.events import Events
from cloud_hub.labels.book import Label
from cloud_hub.labels.bounds import Bound
from cloud_hub.labels.report import QualityReport
from cloud_hub.labels.rows import MAX_ROWS, LabelsTaken
from cloud_hub.roles import Role, Scope
from cloud_hub.rooms import Rooms
from cloud_hub.store.engine import Store
from cloud_hub.tokens import add_token
from support.clock import SetClock
from support.fleets import add_device
from support.labels import Labelled, build_classifier, sample

OPERATOR, VIEWER, NORTH = "mho_operator-of-tests", "mho_viewer-of-tests", "mho_north-of-tests"
Client = TestClient[web.Request, web.Application]


@pytest.fixture
async def client(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> AsyncIterator[Client]:
    """A hub with six predictions of two devices, and three who may ask it."""
    hub = Labelled(store, blobs, events, clock)
    built = await build_classifier(store, blobs)
    for number, device in enumerate(("cam-1", "cam-2")):
        items = [sample(built, f"{device}-{i}", clock() + i, {"scores": (0.8, 0.1, 0.1)}) for i in range(3)]
        await hub.send(device, *items)
        await add_device(cast(Rooms, SimpleNamespace(store=store)), device, {"site": ("north", "south")[number]})
    await add_token(store, clock, "olga", OPERATOR, role=Role.OPERATOR)
    await add_token(store, clock, "vera", VIEWER, role=Role.VIEWER)
    await add_token(store, clock, "nils", NORTH, role=Role.OPERATOR, scope=Scope.parse("site=north"))
    rooms = cast(Rooms, SimpleNamespace(config=HubConfig(), store=store, clock=clock, labels=hub.labels))
    async with TestClient(TestServer(application(rooms, labels.ROUTES))) as client:
        yield client


async def call(
    client: Client, method: str, path: str, body: object = None, token: str = OPERATOR, status: int = 200
) -> bytes:
    data = body if isinstance(body, bytes) else None if body is None else msgspec.json.encode(body)
    headers = {"Authorization": f"Bearer {token}"}
    response = await client.request(method, f"/api/v1{path}", data=data, headers=headers)
    raw = await response.read()
    assert response.status == status, raw
    return raw


async def message(client: Client, method: str, path: str, body: object, status: int, token: str = OPERATOR) -> str:
    return str(msgspec.json.decode(await call(client, method, path, body, token, status))["error"]["message"])


def rows(*pairs: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"labels": [{"prediction_id": name, "label": label, **more} for name, label in pairs]}


async def test_labels_are_taken_listed_and_counted_in_quality(client: Client) -> None:
    body = rows(("cam-1-0", "cat"), ("cam-1-1", 1), ("cam-2-0", "owl"), ("cam-2-1", "horse"))
    taken = msgspec.json.decode(await call(client, "POST", "/labels", body), type=LabelsTaken)
    assert (taken.accepted, [one.row for one in taken.refused]) == (3, [3])
    listed = msgspec.json.decode(await call(client, "GET", "/labels?limit=2", token=VIEWER), type=list[Label])
    assert [(one.prediction_id, one.value, one.author) for one in listed] == [
        ("cam-1-0", "cat", "olga"), ("cam-1-1", 1, "olga"),
    ]  # fmt: skip
    rest = msgspec.json.decode(await call(client, "GET", f"/labels?after={listed[-1].id}"), type=list[Label])
    assert [one.prediction_id for one in rest] == ["cam-2-0"]
    answer = await call(client, "GET", "/quality?module=digits&by=device", token=VIEWER)
    (report,) = msgspec.json.decode(answer, type=list[QualityReport])
    assert report.total.accuracy is not None
    assert report.total.accuracy.value == pytest.approx(1 / 3)
    assert {part.name: part.rows for part in report.parts} == {"cam-1": 2, "cam-2": 1}
    assert msgspec.json.decode(answer)[0]["estimate"]["estimated"] is True


async def test_nothing_that_is_not_a_label_is_kept(client: Client) -> None:
    many = rows(*((f"p{i}", "cat") for i in range(MAX_ROWS + 1)))
    for body, words in (
        (rows(("a", {"cat": 1})), "labels[0].label"),
        (rows(("a", None)), "labels[0].label"),
        (rows(("", "cat")), "labels[0].prediction_id"),
        ({"labels": [{"prediction_id": "a"}]}, "label"),
        ({"labels": []}, "labels"),
        (many, "labels"),
        (rows(("a", "cat"), extra=1), "extra"),
        (b'{"labels": [{"prediction_id": "a", "label": NaN}]}', "body"),
    ):
        assert words in await message(client, "POST", "/labels", body, 400)
    assert await call(client, "GET", "/labels") == b"[]"


async def test_whoever_may_only_look_changes_nothing(client: Client) -> None:
    await message(client, "POST", "/labels", rows(("cam-1-0", "cat")), 403, VIEWER)
    await message(client, "PUT", "/quality/bounds", {"module": "digits", "metric": "mae", "bound": 1}, 403, VIEWER)
    await message(client, "DELETE", "/quality/bounds?module=digits", None, 403, VIEWER)


async def test_a_scope_is_all_that_is_seen_and_labelled(client: Client) -> None:
    await call(client, "POST", "/labels", rows(("cam-1-0", "cat"), ("cam-2-0", "owl")))
    taken = msgspec.json.decode(
        await call(client, "POST", "/labels", rows(("cam-1-1", "cat"), device="cam-1"), NORTH), type=LabelsTaken
    )
    assert taken.accepted == 1
    for device, key in (("", "scope-needs-device"), ("cam-2", "device-not-found")):
        body = rows(("cam-2-1", "cat"), device=device)
        answer = msgspec.json.decode(await call(client, "POST", "/labels", body, NORTH), type=LabelsTaken)
        assert [one.key for one in answer.refused] == [key]
    (report,) = msgspec.json.decode(
        await call(client, "GET", "/quality?module=digits", token=NORTH), type=list[QualityReport]
    )
    assert report.total.rows == 2
    seen = msgspec.json.decode(await call(client, "GET", "/labels", token=NORTH), type=list[Label])
    assert [one.prediction_id for one in seen] == ["cam-1-1"]
    assert "no device cam-2" in await message(client, "GET", "/quality?module=digits&device=cam-2", None, 404, NORTH)
    bound = {"module": "digits", "metric": "accuracy", "bound": 0.9}
    assert "outside your scope" in await message(client, "PUT", "/quality/bounds", bound, 403, NORTH)


async def test_a_bound_is_set_listed_and_removed(client: Client) -> None:
    bound = {"module": "digits", "metric": "accuracy", "bound": 0.9}
    made = msgspec.json.decode(await call(client, "PUT", "/quality/bounds", bound), type=Bound)
    assert (made.set_by, made.output) == ("olga", "")
    assert msgspec.json.decode(await call(client, "GET", "/quality/bounds"), type=list[Bound]) == [made]
    await call(client, "DELETE", "/quality/bounds?module=digits", status=204)
    assert await call(client, "GET", "/quality/bounds?module=digits") == b"[]"


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/quality?module=faces", 404, "no module faces"),
        ("/quality?module=digits&version=9", 404, "no module digits version 9"),
        ("/quality", 400, "module"),
        ("/quality?module=digits&since=5&until=4", 400, "time before the other"),
        ("/quality?module=digits&device=cam-9", 404, "no device cam-9"),
        ("/labels?state=loud", 400, "waiting, joined, unusable"),
        ("/labels?limit=many", 400, "limit"),
    ],
)
async def test_a_question_that_cannot_be_answered_says_why(client: Client, path: str, status: int, words: str) -> None:
    assert words in await message(client, "GET", path, None, status)
