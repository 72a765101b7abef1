"""Ten thousand requests at once: each is answered, with a prediction or with 503, and the worker is none the worse."""

from __future__ import annotations

import asyncio
import re
import selectors
import socket
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from modules.manifest import Manifest, Resources
from modules.runtime import Runtime
from modules.tensors import TensorSpec
from worker.conftest import Digits
from worker.driver import WorkerDriver, infer_request, json_input, write_module

REQUESTS, CONNECTIONS = 10_000, 500
DEADLINE_S = 60.0
MAX_GROWTH_MIB = 150
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
SCRIPT = b"import time\ndef init(): pass\ndef predict(inputs):\n    time.sleep(0.002)\n    return inputs\n"


def flood(path: str, raw: bytes) -> Counter[int]:
    """All is sent before anything is read; statuses by count. A connection that is closed early counts as 0."""
    each = REQUESTS // CONNECTIONS
    statuses: Counter[int] = Counter()
    with selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS):
            one = socket.socket(socket.AF_UNIX)
            one.settimeout(DEADLINE_S)
            one.connect(path)
            one.sendall(raw * each)
            selector.register(one, selectors.EVENT_READ, bytearray())
        deadline = time.monotonic() + DEADLINE_S
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(1.0):
                assert isinstance(key.fileobj, socket.socket)
                data = key.fileobj.recv(65536)
                key.data.extend(data)
                found = _STATUS.findall(key.data)
                if len(found) >= each or not data:
                    statuses.update(map(int, found))
                    statuses[0] += each - len(found)
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            statuses[0] += each
            key.fileobj.close()
    return +statuses


def resident_mib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


async def test_a_quick_model_answers_ten_thousand_at_once(
    tmp_path: Path, digits_module: Manifest, digits: Digits
) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module) as worker:
        await worker.serve()
        before = resident_mib(worker.process.pid)
        worker.listener.listen(CONNECTIONS)
        statuses = await asyncio.to_thread(flood, worker.path, infer_request({"inputs": [json_input(digits.x[:1])]}))
        assert statuses == {200: REQUESTS}
        assert resident_mib(worker.process.pid) - before < MAX_GROWTH_MIB
        stats = await worker.stats()
        assert (stats.requests, stats.errors, stats.in_flight) == (REQUESTS, 0, 0)


@pytest.mark.parametrize("max_queue", [16])
async def test_a_slow_one_tells_those_it_has_no_room_for_to_come_again(tmp_path: Path, max_queue: int) -> None:
    """What takes longer than a hop to a thread runs in the pool."""
    specs = (TensorSpec("x", "FP32", (-1, 2)),)
    manifest = write_module(
        tmp_path / "slot", {"entry.py": SCRIPT}, inputs=specs, outputs=specs,
        runtime=Runtime(backend="script", model="", entry="entry.py"), resources=Resources(max_queue=max_queue),
    )  # fmt: skip
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        await worker.serve()
        worker.listener.listen(CONNECTIONS)
        raw = infer_request({"inputs": [json_input(np.zeros((1, 2), np.float32))]})
        statuses = await asyncio.to_thread(flood, worker.path, raw)
        assert set(statuses) <= {200, 503}
        assert sum(statuses.values()) == REQUESTS
        assert min(statuses[200], statuses[503]) > 0
        assert (await worker.ask(raw)).status == 200
        stats = await worker.stats()
        assert (stats.requests, stats.in_flight) == (REQUESTS + 1, 0)
        assert stats.errors == statuses[503]
