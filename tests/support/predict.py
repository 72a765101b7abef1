"""An application on the device: asks an endpoint over HTTP, without blocking the test's loop."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any
from urllib.error import HTTPError

from support.built import rows

TIMEOUT_S = 15.0


async def served_version(address: str, name: str = "iris") -> int:
    """The version that answers now. Raises OSError when nobody does."""
    return int((await get(f"{address}/v2/models/{name}"))["versions"][0])


async def predict(address: str, name: str = "iris", count: int = 1) -> list[int]:
    """The labels of the first `count` rows of iris. Raises OSError."""
    data = rows(count)
    tensor = {"name": "X", "shape": list(data.shape), "datatype": "FP32", "data": data.ravel().tolist()}
    answer = await get(f"{address}/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode())
    return next(list(map(int, o["data"])) for o in answer["outputs"] if o["datatype"] == "INT64")


async def status_of(address: str, name: str = "iris", count: int = 1) -> int:
    """The HTTP status that a prediction gets."""
    try:
        await predict(address, name, count)
    except HTTPError as error:
        return error.code
    return 200


async def get(url: str, body: bytes | None = None) -> dict[str, Any]:
    def ask() -> dict[str, Any]:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=TIMEOUT_S) as response:
            answer: dict[str, Any] = json.loads(response.read())
            return answer

    return await asyncio.to_thread(ask)
