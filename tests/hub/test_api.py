import hashlib
import io
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiohttp import ClientResponse, ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

from cloud_hub.api import models, system
from cloud_hub.api.app import MAX_JSON_BYTES, application
from cloud_hub.api.auth import add_token
from cloud_hub.api.route import Call, Route
from cloud_hub.blobs import Blobs
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Conflict
from cloud_hub.events import Events
from cloud_hub.registry import Registry
from cloud_hub.rooms import Rooms
from cloud_hub.store.engine import Store
from support.clock import SetClock

TOKEN = "mho_a-token-for-tests"
Client = TestClient[web.Request, web.Application]


class Inner(msgspec.Struct, frozen=True):
    count: int


class Order(msgspec.Struct, frozen=True):
    inner: Inner
    words: tuple[str, ...] = ()


class Wish(msgspec.Struct, frozen=True):
    count: int = 1
    loud: bool = False
    word: tuple[str, ...] = ()


async def take_order(_rooms: Rooms, call: Call) -> Order:
    return cast(Order, call.body)


async def take_wish(_rooms: Rooms, call: Call) -> Wish:
    return cast(Wish, call.query)


async def who_am_i(_rooms: Rooms, call: Call) -> Order:
    return Order(Inner(call.int("number")), (call.actor,))


async def fail(_rooms: Rooms, call: Call) -> None:
    if call.path["how"] == "conflict":
        raise Conflict("in-the-way", "thing 7 is in the way", thing=7)
    raise RuntimeError("the secret of the hub")


ROUTES = (
    *system.ROUTES,
    *models.ROUTES,
    Route("POST", "/orders", take_order, "Order", Order, body=Order, status=201),
    Route("GET", "/wishes", take_wish, "Wish", Wish, query=Wish),
    Route("GET", "/numbers/{number}", who_am_i, "Number", Order),
    Route("POST", "/failures/{how}", fail, "Fail"),
)


@pytest.fixture
async def client(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> AsyncIterator[Client]:
    """The real application over the rooms that these routes use, on a port of its own."""
    registry = Registry(store, blobs, events, clock)
    rooms = SimpleNamespace(config=HubConfig(), store=store, blobs=blobs, events=events, clock=clock, registry=registry)
    await add_token(store, clock, "alice", TOKEN)
    server = TestServer(application(cast(Rooms, rooms), ROUTES))
    async with TestClient(server, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


@pytest.fixture
async def stranger(client: Client) -> AsyncIterator[ClientSession]:
    """Somebody without a token."""
    async with ClientSession(client.make_url("/")) as session:
        yield session


async def refusal(response: ClientResponse, status: int) -> tuple[str, str, dict[str, Any]]:
    """Key, message and fields of the one error body (RFC 9457), which says all in the older form too."""
    body = await response.json()
    assert (response.status, response.content_type, body["status"]) == (status, "application/problem+json", status)
    assert set(body) == {"type", "title", "status", "detail", "instance", "key", "fields", "error"}
    assert body["type"] == f"urn:mooring:problem:{body['key']}"
    assert body["instance"] == f"urn:mooring:request:{response.headers['X-Request-Id']}"
    assert body["error"] == {"key": body["key"], "message": body["detail"], "fields": body["fields"]}
    return body["key"], body["detail"], body["fields"]


async def upload(client: Client, data: bytes) -> str:
    response = await client.post("/api/v1/uploads", data=io.BytesIO(data))
    answer = await response.json()
    assert (response.status, answer["size"]) == (201, len(data))
    return str(answer["sha256"])


async def register(client: Client, name: str = "digits", **more: object) -> dict[str, Any]:
    files = [{"path": "model.onnx", "sha256": await upload(client, b"model bytes")}]
    response = await client.post("/api/v1/models", json={"name": name, "files": files, **more})
    answer: dict[str, Any] = await response.json()
    assert response.status == 201, answer
    return answer


async def test_a_route_without_a_token_is_refused_and_says_how(stranger: ClientSession) -> None:
    async with stranger.get("/api/v1/models") as response:
        assert await refusal(response, 401) == (
            "token-missing", "expected the header Authorization: Bearer TOKEN", {}
        )  # fmt: skip
        assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header", ["Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x", "Bearer " + "x" * 600]
)
async def test_a_wrong_token_is_refused(stranger: ClientSession, header: str) -> None:
    async with stranger.get("/api/v1/models", headers={"Authorization": header}) as response:
        key, _, _ = await refusal(response, 401)
        assert key in ("token-missing", "token-unknown")


async def test_a_token_ends_when_it_was_said_to(
    client: Client, stranger: ClientSession, store: Store, clock: SetClock
) -> None:
    await add_token(store, clock, "ci", "short-lived", clock.now + 60)
    headers = {"Authorization": "Bearer short-lived"}
    async with stranger.get("/api/v1/models", headers=headers) as response:
        assert response.status == 200
    clock.advance(60)
    async with stranger.get("/api/v1/models", headers=headers) as response:
        assert (await refusal(response, 401))[0] == "token-expired"


async def test_only_the_digest_of_a_token_is_in_the_database(client: Client, hub_paths: HubPaths) -> None:
    for path in (hub_paths.database, hub_paths.database.with_name("hub.sqlite3-wal")):
        assert TOKEN.encode() not in path.read_bytes()


async def test_the_handler_learns_who_asks_and_numbers_in_the_path(client: Client) -> None:
    response = await client.get("/api/v1/numbers/7")
    assert await response.json() == {"inner": {"count": 7}, "words": ["alice"]}


@pytest.mark.parametrize("number", ["x", "0", "-1", "1.5", "٣", "9999999999"])
async def test_a_path_without_a_number_where_one_belongs_is_refused(client: Client, number: str) -> None:
    _, message, fields = await refusal(await client.get(f"/api/v1/numbers/{number}"), 400)
    assert message.startswith("number: expected a whole number")
    assert fields == {"field": "number"}


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b'{"inner": {"count": "x"}}', "inner.count", "expected `int`, got `str`"),
        (b'{"inner": {}}', "inner", "missing required field `count`"),
        (b"{}", "", "missing required field `inner`"),
        (b"[]", "", "expected `object`, got `array`"),
        (b'{"inner": {"count": 1}, "colour": 1}', "colour", "expected inner, words; got the unknown 'colour'"),
        (b"not json", "", "invalid"),
        (b"", "", "missing required field `inner`"),
        (b'{"inner": {"count": NaN}}', "", "malformed"),
        (b"\xff\xfe", "", ""),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_with_the_field(
    client: Client, body: bytes, field: str, words: str
) -> None:
    key, message, fields = await refusal(await client.post("/api/v1/orders", data=body), 400)
    assert (key, fields) == ("body-invalid", {"field": field})
    assert message.startswith("body: ")
    assert words in message


async def test_a_body_that_fits_arrives_whole(client: Client) -> None:
    order = {"inner": {"count": 3}, "words": ["a", "b"]}
    response = await client.post("/api/v1/orders", json=order)
    assert (response.status, await response.json()) == (201, order)


async def test_a_body_above_the_limit_is_refused(client: Client) -> None:
    response = await client.post("/api/v1/orders", data=io.BytesIO(b" " * (MAX_JSON_BYTES + 1)))
    assert (await refusal(response, 413))[0] == "body-too-large"


async def test_text_in_the_query_becomes_values(client: Client) -> None:
    response = await client.get("/api/v1/wishes?count=5&loud=true&word=a&word=b")
    assert await response.json() == {"count": 5, "loud": True, "word": ["a", "b"]}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("count=many", "count: expected `int`, got `str`"),
        ("loud=perhaps", "loud: expected `bool`, got `str`"),
        ("count=1&count=2", "count: expected once, got 2 times"),
        ("colour=red", "expected count, loud, word; got the unknown 'colour'"),
    ],
)
async def test_a_query_that_does_not_fit_is_refused_with_the_field(client: Client, query: str, words: str) -> None:
    key, message, _ = await refusal(await client.get(f"/api/v1/wishes?{query}"), 400)
    assert (key, message) == ("query-invalid", f"query: {words}")


async def test_an_error_of_the_hub_becomes_the_one_error_body(client: Client) -> None:
    response = await client.post("/api/v1/failures/conflict")
    assert await refusal(response, 409) == ("in-the-way", "thing 7 is in the way", {"thing": 7})


async def test_an_error_that_nobody_foresaw_tells_its_id_and_nothing_else(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.post("/api/v1/failures/unforeseen", headers={"X-Request-Id": "req-7"})
    key, message, fields = await refusal(response, 500)
    assert (key, fields, response.headers["X-Request-Id"]) == ("internal", {"request_id": "req-7"}, "req-7")
    assert "secret" not in message
    assert "the secret of the hub" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/api/v1/nothing", 404), ("PUT", "/api/v1/models", 405), ("GET", "/", 404)],
)
async def test_unknown_paths_and_methods_have_the_same_error_body(
    client: Client, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    _, message, _ = await refusal(response, status)
    assert path in message
    assert response.headers["X-Request-Id"]


async def test_a_model_goes_in_and_comes_out_whole(client: Client) -> None:
    made = await register(client, description="Digits", tags={"stage": "test"}, datasets=["uci"], git_commit="abc")
    assert (made["version"], made["tags"], made["files"][0]["size"]) == (1, {"stage": "test"}, 11)
    assert await (await client.get("/api/v1/models/digits/1")).json() == made
    assert await (await client.get("/api/v1/models?tag=stage=test")).json() == [made]
    assert await (await client.get("/api/v1/models?tag=stage=live")).json() == []
    response = await client.get("/api/v1/models/digits/1/files/model.onnx")
    assert await response.read() == b"model bytes"
    assert response.headers["Content-Disposition"] == "attachment; filename*=UTF-8''model.onnx"


async def test_a_part_of_a_file_can_be_downloaded(client: Client) -> None:
    await register(client)
    url = "/api/v1/models/digits/1/files/model.onnx"
    response = await client.get(url, headers={"Range": "bytes=6-"})
    assert (response.status, await response.read()) == (206, b"bytes")
    assert response.headers["Content-Range"] == "bytes 6-10/11"
    assert (await client.get(url, headers={"Range": "bytes=100-"})).status == 416


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", "/models/digits/9", "no model digits version 9"),
        ("DELETE", "/models/others/1", "no model others version 1"),
        ("GET", "/models/digits/1/files/other.onnx", "no file 'other.onnx'"),
        ("GET", "/models/digits/1/files/..%2f..%2fhub.toml", "no file '../../hub.toml'"),
    ],
)
async def test_what_is_not_there_is_named(client: Client, method: str, path: str, words: str) -> None:
    await register(client)
    _, message, _ = await refusal(await client.request(method, f"/api/v1{path}"), 404)
    assert words in message


async def test_a_deleted_model_is_gone_and_the_change_has_a_name_to_it(client: Client) -> None:
    await register(client)
    assert (await client.delete("/api/v1/models/digits/1")).status == 204
    assert (await client.get("/api/v1/models/digits/1")).status == 404
    events = await (await client.get("/api/v1/events")).json()
    assert [(event["kind"], event["actor"]) for event in events] == [
        ("model.deleted", "alice"), ("model.registered", "alice")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"name": "Digits", "files": []}, 400, "name: expected"),
        ({"name": "digits", "files": []}, 400, "expected 1 to 64 files, got 0"),
        ({"name": "digits", "files": [{"path": "a", "sha256": "0" * 64}]}, 404, "upload the file first"),
        ({"name": "digits", "files": [{"path": "a", "sha256": "x"}]}, 400, "expected 64 lower-case"),
        ({"name": "digits", "files": [{"path": "a"}]}, 400, "missing required field `sha256`"),
        ({"name": "digits", "files": [{"path": "a", "sha256": "x", "mode": 1}]}, 400, "unknown field `mode`"),
        ({"name": "digits", "files": [], "tags": {"a b": "c"}}, 400, "tags: expected names"),
    ],
)
async def test_a_model_that_does_not_fit_is_refused(
    client: Client, body: dict[str, object], status: int, words: str
) -> None:
    _, message, _ = await refusal(await client.post("/api/v1/models", json=body), status)
    assert words in message


async def test_the_same_path_twice_is_refused(client: Client) -> None:
    file = {"path": "a", "sha256": await upload(client, b"x")}
    response = await client.post("/api/v1/models", json={"name": "digits", "files": [file, file]})
    assert "more than once" in (await refusal(response, 400))[1]


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "after=digits", "tag=stage"])
async def test_a_listing_asked_for_wrongly_is_refused(client: Client, query: str) -> None:
    assert (await refusal(await client.get(f"/api/v1/models?{query}"), 400))[0] == "query-invalid"


async def test_a_large_upload_streams_to_its_digest(client: Client) -> None:
    data = bytes(range(256)) * 40_000  # more than the limit of a JSON body
    assert await upload(client, data) == hashlib.sha256(data).hexdigest()


async def test_an_upload_that_announces_too_much_is_refused_before_it_is_sent(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "MAX_UPLOAD_BYTES", 10)
    assert (await refusal(await client.post("/api/v1/uploads", data=b"x" * 11), 413))[0] == "upload-too-large"


async def test_an_upload_that_turns_out_too_large_leaves_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch, hub_paths: HubPaths
) -> None:
    monkeypatch.setattr(system, "MAX_UPLOAD_BYTES", 10)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"12345"

    assert (await refusal(await client.post("/api/v1/uploads", data=pieces()), 413))[0] == "upload-too-large"
    assert [path for path in hub_paths.blobs.rglob("*") if path.is_file()] == []
