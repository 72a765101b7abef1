"""Modules in containers of a real engine: served, handed over, walled in, and restarted by the agent alone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import msgspec
import pytest

from modules.manifest import Resources
from support.built import build, build_script
from support.contained import Contained
from support.container_rig import QUICK, Rig
from support.dockerd import Dockerd
from support.predict import get, predict, served_version
from support.waiting import until

Make = Callable[..., Contained]
pytestmark = pytest.mark.timeout(180)  # the first one starts an engine, and makes an image

# What a script sees of the world; its words go to the module's log.
CURIOUS = """
import os, socket
def init():
    for path in ("/opt/x", "/mooring/module/x", "/mooring/control/x"):
        try:
            open(path, "w")
            print("wrote", path, flush=True)
        except OSError as error:
            print("refused", path, error.errno, flush=True)
    print("interfaces", [name for _, name in socket.if_nameindex()], flush=True)
    print("user", os.getuid(), "files", sorted(os.listdir(os.environ["AZUREML_MODEL_DIR"])), flush=True)
def predict(inputs):
    return {}
"""
HUNGRY = """
def init():
    global kept
    kept = []
def predict(inputs):
    while True:
        kept.append(b"x" * (16 << 20))
"""


async def test_a_module_in_a_container_serves_the_endpoint_of_its_name(rig: Rig, contained: Make) -> None:
    await rig.keeper.start(rig.set(contained(build())))
    address = await rig.serving()
    assert await predict(address, count=2) == [0, 0]
    report = rig.keeper.reports()[0]
    assert (report.endpoint, report.level) == (address, "isolated")
    assert "CPUExecutionProvider" in report.execution
    reader, writer = await asyncio.open_unix_connection(str(rig.paths.endpoints / "iris.sock"))
    writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_container_follows_a_process_and_another_container_it_and_nobody_is_refused(
    rig: Rig, contained: Make
) -> None:
    await rig.keeper.start(rig.set(build(version=1)))
    address = await rig.serving()
    seen: set[int] = set()
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            seen.add(await served_version(address))
            await predict(address)

    asking = asyncio.gather(*(ask() for _ in range(2)))
    for version in (2, 3):
        target = rig.set(contained(build(version=version)))
        await rig.keeper.switch(target, {"iris": await rig.keeper.spare(target.modules[0])})
        await until(lambda: version in seen or asking.done(), f"version {version} to answer", 40)  # noqa: B023
        assert not asking.done()
    stop.set()
    await asking
    assert seen == {1, 2, 3}
    assert rig.runtime.address("iris") == address


async def test_a_container_writes_nowhere_and_reaches_no_network(rig: Rig, contained: Make) -> None:
    await rig.keeper.start(rig.set(contained(build_script(CURIOUS))))
    await rig.serving()
    await until(lambda: "user" in rig.log(), "the script's words in the module's log")
    log = rig.log()
    assert "wrote" not in log
    assert log.count("refused") == 3
    assert "interfaces ['lo']" in log
    assert f"user {QUICK.uid_first}" in log
    assert "'score.py'" in log


async def test_too_much_memory_is_a_verdict_of_its_own_and_the_module_comes_back(
    make_rig: Callable[..., Rig], contained: Make
) -> None:
    # Without a worker's own limits it is the container's that counts.
    rig = make_rig(msgspec.structs.replace(QUICK, confine=False))
    module = contained(build_script(HUNGRY), resources=Resources(memory_mib=16))
    await rig.keeper.start(rig.set(module))
    address = await rig.serving()
    asking = asyncio.create_task(get(f"{address}/v2/models/iris/infer", b'{"inputs":[]}'))
    body = b'{"inputs":[{"name":"X","shape":[1,4],"datatype":"FP32","data":[1,2,3,4]}]}'
    other = asyncio.create_task(get(f"{address}/v2/models/iris/infer", body))
    await until(lambda: bool(rig.told), "the verdict", 40)
    await asyncio.gather(asking, other, return_exceptions=True)
    assert rig.told[0][0] == "worker-crashed"
    assert "want of memory" in rig.told[0][1]
    assert rig.unit().failure is not None
    assert rig.unit().failure.key == "out-of-memory"  # type: ignore[union-attr]
    await rig.serving()


async def test_a_killed_container_is_started_again_by_the_agent_and_counted(
    rig: Rig, contained: Make, engine: Dockerd
) -> None:
    await rig.keeper.start(rig.set(contained(build())))
    address = await rig.serving()
    with engine.client() as client:
        made = client.containers()[0]["Id"]
        assert client.inspect_container(made)["HostConfig"]["RestartPolicy"]["Name"] == "no"
        client.kill(made)
        await until(lambda: rig.keeper.reports()[0].restarts == 1, "the restart to be counted")
        await rig.serving()
        assert await predict(address) == [0]
        assert [one["Id"] for one in client.containers(all=True)] != [made]
        assert len(client.containers(all=True)) == 1, "the one that ended was removed"


async def test_predictions_go_on_while_the_engine_is_dead_and_restarts_when_it_is_back(
    rig: Rig, contained: Make, engine: Dockerd
) -> None:
    await rig.keeper.start(rig.set(contained(build())))
    address = await rig.serving()
    engine.kill()
    try:
        assert await predict(address) == [0], "the engine is not in the way of a request"
        os.kill(rig.pid(), signal.SIGKILL)
        await until(lambda: any("engine" in text for _, text, _ in rig.told), "the engine's absence to be told", 40)
        assert rig.unit().failure is not None
        assert rig.unit().failure.key == "engine-unreachable"  # type: ignore[union-attr]
    finally:
        engine.start()
    await rig.serving()
    assert await predict(address) == [0]
