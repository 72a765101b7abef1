"""The whole API over all rooms of a hub as `service` builds them: the story once, and what is wrong on every route."""

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from cloud_hub.api.app import application
from cloud_hub.api.table import EVERY_ROUTE
from cloud_hub.config import HubConfig
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.service import open_hub
from support.devices import make_request

Client = TestClient[web.Request, web.Application]
PROFILE = "generic-x86_64"
samples, labels = load_iris(return_X_y=True)
measures = samples.astype(np.float32)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """The operator of a development hub, over a server on a port of its own."""
    api, mqtt = free_ports(2)
    paths = await initialise(tmp_path / "hub", HubConfig(dev=True, api_port=api, mqtt_port=mqtt))
    token = paths.operator_token.read_text().strip()
    async with open_hub(paths) as rooms:
        server = TestServer(application(rooms, EVERY_ROUTE))
        async with TestClient(server, headers={"Authorization": f"Bearer {token}"}) as client:
            yield client


async def send(client: Client, method: str, path: str, body: object = None, status: int = 200) -> Any:
    """The parsed answer, after its status was checked."""
    async with client.request(method, f"/api/v1{path}", json=body) as response:
        text = await response.text()
        assert response.status == status, text
        return json.loads(text) if text else None


async def upload(client: Client, data: bytes) -> str:
    async with client.post("/api/v1/uploads", data=data) as response:
        return str((await response.json())["sha256"])


async def sign_iris(client: Client) -> dict[str, Any]:
    """Register a model, build and sign a module: what the module's row says."""
    model = LogisticRegression(max_iter=500).fit(measures, labels)
    onnx = to_onnx(model, measures[:1], options={id(model): {"zipmap": False}}, target_opset=17)
    training = io.BytesIO()
    np.savez(training, X=measures)
    files = [{"path": "model.onnx", "sha256": await upload(client, onnx.SerializeToString())}]
    await send(client, "POST", "/models", {"name": "iris", "files": files}, 201)
    request = {
        "model": "iris",
        "version": 1,
        "profile": PROFILE,
        "reference": await upload(client, training.getvalue()),
    }
    built = await send(client, "POST", "/modules", request, 201)
    assert built["release_counter"] is None
    signed: dict[str, Any] = await send(client, "POST", f"/modules/iris/1/{PROFILE}/sign")
    return signed


async def enrol(client: Client, device: str) -> dict[str, Any]:
    token = await send(client, "POST", "/tokens", {"device": device, "tags": {"site": "lyon"}}, 201)
    request = {"token": token["token"], "device": device, "csr": make_request(device), "profile": PROFILE}
    async with ClientSession() as stranger, stranger.post(client.make_url("/api/v1/enroll"), json=request) as response:
        answer: dict[str, Any] = await response.json()
        assert response.status == 201, answer
        return answer


async def test_the_story_from_a_model_to_a_rollout_and_back(client: Client) -> None:
    signed = await sign_iris(client)
    assert signed["release_counter"] == 1
    manifest = await send(client, "GET", f"/modules/iris/1/{PROFILE}/manifest")
    assert manifest["lineage"]["model"] == "iris"
    async with client.get(f"/api/v1/blobs/{signed['manifest_sha256']}") as response:
        assert json.loads(await response.read()) == manifest
    root = await send(client, "GET", "/trust/image/1.root.json")
    assert root["signed"]["_type"] == "root"
    answer = await enrol(client, "cam-1")
    assert json.loads(answer["image_root"]) == root
    assert [device["id"] for device in await send(client, "GET", "/devices?query=site=lyon")] == ["cam-1"]
    order = {"module": "iris", "version": 1, "target": "site=lyon", "start": True}
    rollout = await send(client, "POST", "/rollouts", order, 201)
    rollout_id = rollout["rollout"]["id"]
    detail = await send(client, "GET", "/devices/cam-1")
    assert [(item["module"], item["version"]) for item in detail["desired"]] == [("iris", 1)]
    refused = await send(client, "DELETE", "/models/iris/1", status=409)
    assert refused["error"]["key"] == "model-in-use"
    await send(client, "POST", f"/rollouts/{rollout_id}/abort")
    assert (await send(client, "GET", "/devices/cam-1"))["desired"] == []
    await send(client, "DELETE", "/models/iris/1", status=204)
    await send(client, "DELETE", "/devices/cam-1", status=204)
    told = {event["kind"] for event in await send(client, "GET", "/events")}
    assert told >= {"model.registered", "module.built", "device.enrolled", "rollout.created", "device.retired"}


async def test_an_empty_hub_answers_every_question(client: Client) -> None:
    assert (await send(client, "GET", "/health"))["status"] == "degraded"  # nothing here has started a broker
    for path in ("/models", "/modules", "/devices", "/rollouts", "/alerts", "/samples", "/windows", "/events"):
        assert await send(client, "GET", path) == []
    async with client.get("/api/v1/samples/export") as response:
        assert (response.status, await response.read()) == (200, b"")
    async with client.get("/api/v1/ca") as response:
        assert (await response.text()).startswith("-----BEGIN CERTIFICATE-----")
    assert (await send(client, "GET", "/openapi.json"))["openapi"] == "3.1.0"


@pytest.mark.parametrize(
    ("method", "path", "body", "word"),
    [
        ("GET", "/models/nothing/1", None, "nothing"),
        ("GET", f"/modules/nothing/1/{PROFILE}", None, "nothing"),
        ("GET", f"/modules/nothing/1/{PROFILE}/manifest", None, "nothing"),
        ("POST", f"/modules/nothing/1/{PROFILE}/sign", None, "nothing"),
        ("POST", "/modules", {"model": "nothing", "version": 3, "profile": PROFILE}, "nothing version 3"),
        ("POST", "/tokens", {"profile": "toaster"}, "toaster"),
        ("GET", "/devices/nobody", None, "nobody"),
        ("PUT", "/devices/nobody/tags", {"tags": {}}, "nobody"),
        ("DELETE", "/devices/nobody", None, "nobody"),
        ("POST", "/rollouts", {"module": "nothing", "version": 1, "target": "all"}, "nothing"),
        ("GET", "/rollouts/no-rollout", None, "no-rollout"),
        ("POST", "/rollouts/no-rollout/start", None, "no-rollout"),
        ("POST", "/rollouts/no-rollout/abort", {"reason": "x"}, "no-rollout"),
        ("GET", f"/blobs/{'0' * 64}", None, "0" * 64),
        ("GET", "/trust/image/99.root.json", None, "99.root.json"),
        ("GET", "/drift?module=nothing", None, "nothing"),
    ],
)
async def test_what_is_not_there_is_a_404_with_its_name(
    client: Client, method: str, path: str, body: object, word: str
) -> None:
    answer = await send(client, method, path, body, 404)
    assert word in answer["error"]["message"]


def filled(path: str) -> str:
    """A path with something plausible in the place of each parameter."""
    parts = [
        ("1" if part == "{version}" else "some-thing") if part.startswith("{") else part for part in path.split("/")
    ]
    return "/api/v1" + "/".join(parts)


async def test_every_route_but_the_public_ones_asks_for_a_token(client: Client) -> None:
    async with ClientSession() as stranger:
        for route in EVERY_ROUTE:
            async with stranger.request(route.method, client.make_url(filled(route.path))) as response:
                assert (response.status == 401) == (not route.public), f"{route.method} {route.path}"


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"no-such-field": 1}', b"\x00\xff", b'"text"', b"null"])
async def test_no_route_takes_a_body_that_is_not_its_own(client: Client, body: bytes) -> None:
    for route in EVERY_ROUTE:
        if route.body is not None:
            async with client.request(route.method, filled(route.path), data=body) as response:
                answer = await response.json()
                assert (response.status, answer["error"]["key"]) == (400, "body-invalid"), f"{route.path}: {answer}"


@pytest.mark.parametrize("query", ["no-such-parameter=1", "limit=many", "limit=1&limit=2"])
async def test_no_route_takes_a_query_that_is_not_its_own(client: Client, query: str) -> None:
    for route in EVERY_ROUTE:
        if route.query is not None:
            async with client.get(f"{filled(route.path)}?{query}") as response:
                answer = await response.json()
                assert (response.status, answer["error"]["key"]) == (400, "query-invalid"), f"{route.path}: {answer}"
