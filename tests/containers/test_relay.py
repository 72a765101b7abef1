"""Images that serve by themselves, behind the endpoint that the agent owns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from modules.containers import Container
from support.built import Built, assemble, build
from support.contained import WANTED, Contained
from support.container_rig import Rig
from support.dockerd import Dockerd
from support.predict import get, predict, served_version
from support.waiting import until

Make = Callable[..., Contained]
pytestmark = pytest.mark.timeout(180)  # the first one starts an engine, and makes an image

# Somebody else's server: it knows the protocol and nothing of agents. Its version comes from its environment.
SERVER = """
import http.server, json, os, sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession("/mooring/module/model.onnx", providers=["CPUExecutionProvider"])
names = {"tensor(int64)": "INT64", "tensor(float)": "FP32"}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.say({"versions": [os.environ["VERSION"]]})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"][0]
        rows = numpy.array(asked["data"], dtype="float32").reshape(asked["shape"])
        results = zip(session.get_outputs(), session.run(None, {asked["name"]: rows}))
        self.say({"outputs": [
            {"name": out.name, "datatype": names[out.type], "shape": list(a.shape), "data": a.ravel().tolist()}
            for out, a in results
        ]})
    def say(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass

print("listening", flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", 9000), Handler).serve_forever()
"""


def foreign(version: int = 1, spoil_golden: bool = False) -> tuple[Built, Container]:
    """The usual model, served by a program of its own."""
    module = build(version=version, spoil_golden=spoil_golden)
    files = {**module.files, "server.txt": SERVER.encode()}
    built = assemble("iris", version, files, module.manifest.runtime, health=module.manifest.health)
    wanted = msgspec.structs.replace(
        WANTED,
        serves="http",
        port=9000,
        health="/v2/health/ready",
        environment={"VERSION": str(version)},
        command=(WANTED.python, "/mooring/module/server.txt"),
    )
    return built, wanted


async def test_an_image_that_serves_by_itself_answers_at_the_modules_endpoint(rig: Rig, contained: Make) -> None:
    await rig.keeper.start(rig.set(contained(*foreign())))
    address = await rig.serving()
    assert await predict(address, count=2) == [0, 0]
    report = rig.keeper.reports()[0]
    assert report.level == "isolated"
    assert "served by sha256:" in report.execution
    assert (await rig.keeper.poll("iris")).requests >= 1, "connections are counted"
    await until(lambda: "listening" in rig.log(), "its words in the module's log")


async def test_it_is_handed_over_to_and_from_our_own_worker_without_a_refused_request(
    rig: Rig, contained: Make
) -> None:
    await rig.keeper.start(rig.set(build(version=1)))
    address = await rig.serving()
    seen: set[int] = set()
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            seen.add(await served_version(address))

    asking = asyncio.gather(*(ask() for _ in range(2)))
    for module, version in ((contained(*foreign(version=2)), 2), (build(version=3), 3)):
        target = rig.set(module)
        await rig.keeper.switch(target, {"iris": await rig.keeper.spare(target.modules[0])})
        await until(lambda: version in seen or asking.done(), f"version {version} to answer", 40)  # noqa: B023
        assert not asking.done()
    stop.set()
    await asking
    assert seen == {1, 2, 3}


async def test_its_golden_inputs_go_through_its_own_server(rig: Rig, contained: Make) -> None:
    await rig.keeper.start(rig.set(contained(*foreign(spoil_golden=True))))
    await until(lambda: bool(rig.told) and rig.unit().failure is not None, "the verdict", 40)
    assert rig.unit().failure.key == "golden-mismatch"  # type: ignore[union-attr]


async def test_when_its_server_ends_the_agent_starts_it_again(rig: Rig, contained: Make, engine: Dockerd) -> None:
    await rig.keeper.start(rig.set(contained(*foreign())))
    address = await rig.serving()
    with engine.client() as client:
        client.kill(client.containers()[0]["Id"])
        await until(lambda: rig.keeper.reports()[0].restarts == 1, "the restart to be counted")
        assert "SIGKILL" in rig.told[0][1]
        await rig.serving()
        assert await get(f"{address}/v2/models/iris") == {"versions": ["1"]}
        await until(lambda: len(client.containers(all=True)) == 1, "the one that ended to go")
