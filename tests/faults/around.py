"""What is around the agent in `faults.rig`: the hub's answers, an application, and a look into the device's folder."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import aiomqtt

from agent.trust_floor import Floor, Versions
from modules.messages import Offered, Offers, decode, encode
from modules.topics import Topic, down
from support.hub import FakeHub

Items = frozenset[bytes]
STREAMS = ("window", "sample")


class Hub(FakeHub):
    """A hub that has no other ways than MQTT, and says so; one of before 0.2 would keep silent for ten seconds."""

    async def _hear(self, message: aiomqtt.Message) -> None:
        assert isinstance(message.payload, bytes)
        said = decode(message.payload)
        if not isinstance(said, Offers):
            return await super()._hear(message)
        device = Topic.parse(message.topic.value).device
        correlation = getattr(message.properties, "CorrelationData", b"")
        return await self.say(down(device, "data"), encode(Offered((), 600.0)), correlation=correlation)


async def infer(address: str, name: str, value: int) -> int:
    """Raises OSError when nobody listens, ValueError for another answer than a prediction."""
    where = urlsplit(address)
    if not where.hostname:
        raise OSError("no address yet")
    tensor = {"name": "X", "shape": [1, 4], "datatype": "FP32", "data": [value, 0, 0, 0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        head = (
            f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        )
        writer.write(head.encode() + b"\r\n" + body)
        answer = await reader.read()
    finally:
        writer.close()
    status, _, rest = answer.partition(b"\r\n")
    if b" 200 " not in status:
        raise OSError(f"expected an answer, got {status!r}")
    outputs = json.loads(rest.partition(b"\r\n\r\n")[2])["outputs"]
    return int(next(output["data"][0] for output in outputs if output["name"] == "label"))


def outbox_in(folder: Path) -> Items:
    """Samples and windows that the outbox of a device's folder holds. Reads a copy: opening would repair it."""
    query = f"select payload from outbox where stream in {STREAMS!r}"
    with tempfile.TemporaryDirectory() as copy:
        for path in folder.glob("agent.sqlite3*"):
            if not path.name.endswith("-shm"):
                shutil.copy(path, copy)
        with closing(sqlite3.connect(Path(copy, "agent.sqlite3"))) as connection:
            return frozenset(bytes(row[0]) for row in connection.execute(query))


def lower_than(before: Path, after: Path) -> list[str]:
    """Versions of metadata that stand in one device's folder and are not known any more in the other."""
    known, now = (Floor.load(root / "metadata/floor.json") for root in (before, after))
    return [f"{name} {versions}" for name, versions in known.repositories.items() if _lower(now, name, versions)]


def _lower(now: Floor, name: str, before: Versions) -> bool:
    held = now.repositories.get(name)
    roles = ("root", "timestamp", "snapshot", "targets")
    return held is None or any(getattr(held, role) < getattr(before, role) for role in roles)
