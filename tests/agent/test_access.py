"""The settings of [serving] that say who may use a module, from the agent's side to the worker's answer."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed
from agent.runtimes.process import ProcessRuntime
from agent.slots import Slots
from agent.store import AgentStore
from modules.manifest import Runtime
from support.built import assemble, install, rows

SCRIPT = b"""
def init(): pass
def predict(inputs):
    n = len(inputs["X"])
    return {"label": [7] * n, "probabilities": [[1, 0, 0]] * n}
"""


@pytest.fixture
async def address(tmp_path: Path, state_dir: StatePaths, agent_store: AgentStore) -> AsyncIterator[str]:
    """Of a module that is served with a token asked for, and memory shared."""
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    slots = Slots(state_dir.slots)
    built = assemble("gate", 1, {"s.py": SCRIPT}, Runtime(model="", entry="s.py"))
    install(slots, built, state_dir.staging)
    serving = ServingSettings(token=True, shared_memory=True, users=(4242,))
    runtime = ProcessRuntime(state_dir, serving, agent_store, slots, lambda *_: None)
    worker = await runtime.load(Installed("gate", 1, built.sha256, 1, "d", verified=True))
    try:
        await runtime.serve(worker)
        yield runtime.address("gate")
    finally:
        await worker.kill()
        runtime.close()


async def ask(address: str, path: str, token: str = "", body: bytes | None = None) -> tuple[int, str]:
    def asked() -> tuple[int, str]:
        request = urllib.request.Request(f"{address}{path}", body)
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(asked)


async def test_a_client_that_has_read_the_token_is_answered_and_no_other(address: str, state_dir: StatePaths) -> None:
    token = state_dir.token.read_text().strip()
    x = rows(1)
    tensor = {"name": "X", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    assert (await ask(address, "/v2/models/gate/infer", "", body))[0] == 401
    assert (await ask(address, "/v2/models/gate/infer", token[:-1], body))[0] == 401
    status, text = await ask(address, "/v2/models/gate/infer", token, body)
    assert (status, json.loads(text)["outputs"][0]["data"]) == (200, [7])
    assert (await ask(address, "/v2/health/ready"))[0] == 200


async def test_clients_may_share_memory_with_a_confined_worker(address: str, state_dir: StatePaths) -> None:
    """Through Landlock, and as another user, where the region lets it."""
    token = state_dir.token.read_text().strip()
    region = Path(f"/dev/shm/mooring-test-{os.getpid()}")
    said = json.dumps({"key": f"/{region.name}", "offset": 0, "byte_size": 64}).encode()
    path = "/v2/systemsharedmemory/region/r"
    try:
        region.write_bytes(bytes(64))
        region.chmod(0o666)
        assert await ask(address, f"{path}/register", token, said) == (200, "")
        assert json.loads((await ask(address, f"{path}/status", token))[1])[0]["byte_size"] == 64
    finally:
        region.unlink()
    assert (await ask(address, f"{path}/unregister", token, b""))[0] == 200
