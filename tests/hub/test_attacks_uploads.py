"""Row 63 of the attacks: paths and addresses where names and digests belong. Nothing outside the store is read."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_hub.api.openapi import document
from cloud_hub.api.table import EVERY_ROUTE
from support.fleets import World, open_world

PATHS = (
    "../../hub.toml", "/etc/passwd", "file:///etc/passwd", "a/../../b", "..", ".", "a\x00b", "a\\..\\b", "C:\\x",
    "a//b", "x" * 300, "",
)  # fmt: skip
SECRET = "database of the hub"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        (world.rooms.paths.root / "secret").write_text(SECRET)
        yield world


async def upload(world: World) -> str:
    headers = {"Authorization": f"Bearer {world.admin}"}
    async with world.client.post("/api/v1/uploads", data=b"model", headers=headers) as response:
        return str((await response.json())["sha256"])


@pytest.mark.parametrize("path", PATHS)
async def test_a_path_is_no_name_of_a_model_and_no_path_out_of_it(world: World, path: str) -> None:
    digest = await upload(world)
    for body in (
        {"name": path, "files": [{"path": "model.onnx", "sha256": digest}]},
        {"name": "digits", "files": [{"path": path, "sha256": digest}]},
        {"name": "digits", "files": [{"path": "model.onnx", "sha256": path}]},
    ):
        answer = await world.ask(world.admin, "POST", "/models", body)
        assert answer.status in (400, 422), answer.text


@pytest.mark.parametrize(
    "text", ["..%2fsecret", "%2e%2e/secret", "....//secret", "%2fetc%2fpasswd", "0" * 63, "Z" * 64]
)
async def test_no_download_leaves_the_store(world: World, text: str) -> None:
    for path in (f"/blobs/{text}", f"/models/digits/1/files/{text}", f"/models/{text}/1", f"/trust/image/{text}"):
        answer = await world.ask(world.admin, "GET", path)
        assert answer.status in (400, 404), f"{path}: {answer.text}"
        assert SECRET not in answer.text
        assert "root:" not in answer.text


def test_no_request_names_an_address_that_the_hub_would_fetch() -> None:
    """But for webhooks: admins name those, and where they lead is judged when it connects (test_webhooks)."""
    schemas = document(EVERY_ROUTE)["components"]["schemas"]
    named = {(kind, name) for kind, schema in schemas.items() for name in fields(schema)}
    assert {"path", "sha256"} <= {name for _, name in named}
    addresses = {one for one in named if one[1] in ("url", "uri", "source", "href", "location", "callback")}
    assert addresses == {("Webhook", "url"), ("NewWebhook", "url")}


def fields(schema: dict[str, Any]) -> Iterator[str]:
    yield from schema.get("properties", {})
