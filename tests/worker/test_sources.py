"""Sources in real workers: scripts' loops, folders, a real broker, a real video; with the parent's door between."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiomqtt
import cv2
import numpy as np
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from agent.config import ServingSettings
from agent.runtimes.users import may_become
from agent.sandbox.bubblewrap import bubblewrap
from agent.sandbox.cage import Cages
from agent.sandbox.given import Given
from agent.sandbox.level import namespaces
from agent.sandbox.protocol import Drain, Drained, Hold, SourceSeen, Start
from agent.sandbox.room import NO_ROOM, with_places
from agent.sources.allowed import SourceNotAllowed, check_allowed, places
from agent.sources.door import Door, Doors
from agent.sources.memory import LEAST_LINES, Memory
from agent.sources.talk import LENGTH, Answer, Begin, Claim, Dial, File, Note, Write, answers, framed
from modules.manifest import Health, Lineage, Manifest, Runtime, SamplingPolicy, encode_manifest
from modules.sources import Directory, Mqtt, Script, Source, SourceError, Video, check_sources
from modules.tensors import TensorSpec
from modules.windows import ReferenceProfile, encode_reference
from support.mosquitto import Mosquitto
from support.waiting import until, until_async
from worker.conftest import INPUTS, OUTPUTS, Digits, golden_set
from worker.driver import WorkerDriver, json_input, request, write_module

DOUBLE = """
    def init(): pass
    def predict(inputs):
        return {"y": inputs["x"] * 2}
"""
X = TensorSpec("x", "FP32", (-1, 2))
Y = TensorSpec("y", "FP32", (-1, 2))
ALL = SamplingPolicy(rate=1.0, window_s=3600)


class SourceDriver(WorkerDriver):
    """A worker with a door, as the agent's parent would start it."""

    def __init__(self, slot: Path, manifest: Manifest, doors: Doors, uid: int = 0, cage: tuple[str, ...] = ()) -> None:
        super().__init__(slot, manifest, ALL, uid=uid, cage=cage)
        self.door: Door = doors.open(manifest.name, manifest.runtime.sources)

    @property
    def _listening(self) -> tuple[int, ...]:
        return (*super()._listening, self.door.handle)

    async def __aenter__(self) -> SourceDriver:
        await super().__aenter__()
        return self

    async def _start(self, expected: Any) -> Any:
        given = Given(dial=self.door.handle, places=places(self.manifest.runtime.sources))
        order = Start(
            str(self.slot), encode_manifest(self.manifest), ALL, (self.listener.fileno(),), self._uid,
            outside=namespaces(), given=given,
        )  # fmt: skip
        self.door.given()
        return await self.order(order, expected)

    async def seen(self) -> SourceSeen:
        (seen,) = (await self.stats()).sources
        return seen

    async def taken(self, count: int) -> None:
        async def enough() -> bool:
            return (await self.seen()).taken >= count

        await until_async(enough, f"{count} items", 40)

    async def finish(self) -> None:
        """Drained, with the last window."""
        await self.order(Drain(10.0), Drained)


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    doors = Doors(tmp_path / "memory")
    yield doors
    doors.close()
    await asyncio.sleep(0)


def scripted(tmp_path: Path, source: Source, script: str = DOUBLE, x: TensorSpec = X, y: TensorSpec = Y) -> Manifest:
    return write_module(
        tmp_path / "slot", {"s.py": textwrap.dedent(script).encode()}, inputs=(x,), outputs=(y,),
        runtime=Runtime(model="", entry="s.py", sources=(source,)),
    )  # fmt: skip


# The script's own loop


async def test_what_a_loop_yields_is_predicted_counted_and_sampled(tmp_path: Path, doors: Doors) -> None:
    script = (
        DOUBLE
        + """
    import numpy as np
    heard = []
    def loop(stop):
        block = np.zeros((5, 2), np.float32)
        for n in range(4):
            block[:] = n  # the same array again: what was yielded must not change any more
            yield {"x": block}
        assert [r.outputs["y"][0, 0] for r in heard] == [0, 2, 4, 6], heard
        assert all(r.id and not r.error for r in heard)
        yield np.full((1, 2), 50, np.float32)
    def on_result(result):
        heard.append(result)
    """
    )
    manifest = scripted(tmp_path, Script(), script)
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        await worker.taken(5)
        await worker.finish()
        assert (await worker.seen()).failed == 0
        assert "ended" in (await worker.seen()).state
        rows = sum(window.rows for window in worker.windows)
        assert rows == 21
        values = sorted(np.frombuffer(s.inputs[0].data, "<f4")[0] for s in worker.samples)
        assert values == sorted([0.0] * 5 + [1.0] * 5 + [2.0] * 5 + [3.0] * 5 + [50.0])


async def test_a_loop_may_ask_for_predictions_itself(tmp_path: Path, doors: Doors) -> None:
    script = (
        DOUBLE
        + """
    def loop(predict, stop):
        for n in range(3):
            assert predict({"x": [[n, n]]})["y"].tolist() == [[2 * n, 2 * n]]
        try:
            predict({"x": [[1, 2, 3]]})
        except ValueError as error:
            assert "expected FP32 [-1, 2]" in str(error)
        else:
            raise AssertionError
        predict([[7, 7]])
        stop.wait()
    """
    )
    manifest = scripted(tmp_path, Script(), script)
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()

        async def four() -> bool:
            return (await worker.stats()).rows == 4

        await until_async(four, "four predictions", 40)
        await worker.finish()
        assert (await worker.stats()).errors == 0


@pytest.mark.parametrize(
    "act",
    [
        "yield 'junk'", "yield {'z': 1}", "yield {'x': np.zeros((2, 3), 'f4')}", "raise RuntimeError('no')",
        "raise SystemExit(3)", "os.fork()", "yield {'x': np.zeros((0, 2), 'f4')}", "yield {'x': np.zeros((1, 2))}",
        "os.kill(os.getppid(), 9)",
    ],
)  # fmt: skip
async def test_a_loop_that_goes_wrong_leaves_the_endpoint_alone(tmp_path: Path, doors: Doors, act: str) -> None:
    script = (
        DOUBLE
        + f"""
    import os
    import numpy as np
    def loop():
        yield np.ones((1, 2), "f4")
        while True:
            {act}
    """
    )
    manifest = scripted(tmp_path, Script(), script)
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()

        async def told() -> bool:
            seen = await worker.seen()
            return seen.failed > 0 or seen.state.startswith(("failed", "not there"))

        await until_async(told, "the failure", 40)
        answer = await worker.infer({"inputs": [json_input(np.ones((1, 2), np.float32))]})
        assert answer.array("y").tolist() == [[2, 2]]


# Folders


def folder_module(tmp_path: Path, **options: Any) -> Manifest:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "out").mkdir(exist_ok=True)
    options = {"settle_s": 0.0, "every_s": 0.2, "results": str(tmp_path / "out"), **options}
    return scripted(tmp_path, Directory(str(tmp_path / "in"), **options))


def put(tmp_path: Path, name: str, data: str | bytes) -> None:
    """Whole at once, as one should."""
    (tmp_path / "fresh").write_bytes(data.encode() if isinstance(data, str) else data)
    (tmp_path / "fresh").chmod(0o644)
    (tmp_path / "fresh").rename(tmp_path / "in" / name)


def results(tmp_path: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("[!.]*")}


async def arrived(tmp_path: Path, *names: str) -> dict[str, Any]:
    await until(lambda: set(names) <= set(results(tmp_path)), f"results {names}", 40)
    return results(tmp_path)


async def test_files_that_are_there_and_files_that_appear_are_done_once(tmp_path: Path, doors: Doors) -> None:
    manifest = folder_module(tmp_path)
    put(tmp_path, "old.json", "[[1, 2], [3, 4]]")
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        await arrived(tmp_path, "old.json.json")
        put(tmp_path, "raw.bin", np.array([[5, 6]], "<f4").tobytes())
        saved = io.BytesIO()
        np.save(saved, np.full((1, 2), 9, np.float32))
        put(tmp_path, "array.npy", saved.getvalue())
        body = {"inputs": [json_input(np.full((1, 2), 8, np.float32))]}
        put(tmp_path, "request.json", json.dumps(body))
        found = await arrived(tmp_path, "old.json.json", "raw.bin.json", "array.npy.json", "request.json.json")
        assert found["old.json.json"]["outputs"][0]["data"] == [2, 4, 6, 8]
        assert found["raw.bin.json"]["outputs"][0]["data"] == [10, 12]
        assert found["array.npy.json"]["outputs"][0]["data"] == [18, 18]
        assert found["request.json.json"]["parameters"] == {"source": "request.json"}
        await worker.finish()
        assert (await worker.seen()).taken == 4
        assert sum(window.rows for window in worker.windows) == 5


async def test_a_file_is_counted_in_the_window_of_its_last_change(tmp_path: Path, doors: Doors) -> None:
    then = time.time() - 5 * ALL.window_s
    async with SourceDriver(tmp_path / "slot", folder_module(tmp_path), doors) as worker:
        await worker.serve()
        (tmp_path / "fresh").write_bytes(b"[[1, 2], [3, 4]]")
        os.utime(tmp_path / "fresh", (then, then))
        (tmp_path / "fresh").rename(tmp_path / "in" / "old.json")
        await arrived(tmp_path, "old.json.json")
        await worker.finish()
    (window,) = worker.windows
    assert (window.start, window.rows) == (then // ALL.window_s * ALL.window_s, 2)


async def test_what_a_source_takes_and_what_fails_stand_in_the_metrics(tmp_path: Path, doors: Doors) -> None:
    manifest = folder_module(tmp_path)
    put(tmp_path, "good.json", "[[1, 2]]")
    put(tmp_path, "bad.json", "no numbers")
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        await worker.taken(2)
        await arrived(tmp_path, "good.json.json")

        async def failed() -> bool:
            return (await worker.seen()).failed == 1

        await until_async(failed, "the failure to be counted", 40)
        text = (await worker.ask(request("GET", "/metrics"))).body.decode()
        which = f'module="{manifest.name}",version="{manifest.version}",source="directory",number="0"'
        assert f'mooring_source_items_total{{{which},outcome="taken"}} 2\n' in text
        assert f'mooring_source_items_total{{{which},outcome="failed"}} 1\n' in text
        assert f"mooring_source_open{{{which}}} 1\n" in text
        await worker.finish()


async def test_files_wait_while_their_worker_is_told_to_and_are_done_after(tmp_path: Path, doors: Doors) -> None:
    async with SourceDriver(tmp_path / "slot", folder_module(tmp_path), doors) as worker:
        await worker.serve()
        worker.send(Hold(sources=True))

        async def held() -> bool:
            return (await worker.seen()).state.startswith("held")

        await until_async(held, "the source to wait", 40)
        put(tmp_path, "one.json", "[[1, 2]]")
        answer = await worker.infer({"inputs": [json_input(np.ones((1, 2), np.float32))]})
        assert answer.status == 200, "requests are answered meanwhile"
        assert (await worker.seen()).taken == 0
        worker.send(Hold())
        await arrived(tmp_path, "one.json.json")
        assert (await worker.seen()).state == "open"
        await worker.finish()


async def test_another_worker_goes_on_where_the_first_was_killed(tmp_path: Path, doors: Doors) -> None:
    manifest = folder_module(tmp_path)
    for n in range(5):
        (tmp_path / "in" / f"{n}.json").write_text(f"[[{n}, 0]]")
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        await arrived(tmp_path, *(f"{n}.json.json" for n in range(5)))
        await worker.finish()  # all are noted
    for result in (tmp_path / "out").iterdir():
        result.unlink()
    doors.close()
    os.unlink(worker.path)
    put(tmp_path, "new.json", "[[7, 7]]")
    put(tmp_path, "3.json", "[[33, 333]]")  # another file of the same name
    again = Doors(tmp_path / "memory")  # after a restart of the agent, too
    async with SourceDriver(tmp_path / "slot", manifest, again) as worker:
        await worker.serve()
        await arrived(tmp_path, "new.json.json", "3.json.json")
        await worker.finish()
        assert (await worker.seen()).taken == 2
    again.close()
    assert set(results(tmp_path)) == {"new.json.json", "3.json.json"}


async def test_the_next_worker_begins_when_the_one_before_has_gone(tmp_path: Path, doors: Doors) -> None:
    manifest = folder_module(tmp_path)
    async with SourceDriver(tmp_path / "slot", manifest, doors) as first:
        await first.serve()
        put(tmp_path, "a.json", "[[1, 1]]")
        await arrived(tmp_path, "a.json.json")
        os.rename(first.path, f"{first.path}.first")
        async with SourceDriver(tmp_path / "slot", manifest, doors) as second:
            await second.serve()
            put(tmp_path, "b.json", "[[2, 2]]")
            await arrived(tmp_path, "b.json.json")
            assert (await second.seen()).state == "waiting"
            assert (await first.seen()).taken == 2
            first.process.kill()
            await first.exit_code()
            put(tmp_path, "c.json", "[[3, 3]]")
            await arrived(tmp_path, "c.json.json")
            assert (await second.seen()).taken == 1


async def test_files_that_are_no_inputs_are_told_and_not_tried_again(tmp_path: Path, doors: Doors) -> None:
    manifest = folder_module(tmp_path, max_bytes=1000)
    place = tmp_path / "in"
    (place / "empty").write_bytes(b"")
    (place / "short").write_bytes(b"12345")
    (place / "large").write_bytes(bytes(2000))
    (place / "deep.json").write_text("[" * 500)
    (place / "words.json").write_text('[["a", "b"]]')
    (place / "wide.json").write_text("[[1, 2, 3]]")
    (place / "half.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (place / "pickle.npy").write_bytes(
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"
    )
    (place / "link").symlink_to("/etc/passwd")
    (place / ".hidden").write_text("[[1, 2]]")
    os.mkfifo(place / "fifo")
    Path(os.fsdecode(os.fsencode(place) + b"/\xff.json")).write_text("[[1, 2]]")
    (place / "good.json").write_text("[[1, 2]]")
    bad = ["empty", "short", "large", "deep.json", "words.json", "wide.json", "half.npy", "pickle.npy"]
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        found = await arrived(tmp_path, "good.json.json", *(f"{name}.json" for name in bad))
        assert all(found[f"{name}.json"]["error"] for name in bad)
        assert "at most 1000 bytes" in found["large.json"]["error"]
        put(tmp_path, "last.json", "[[1, 2]]")
        found = await arrived(tmp_path, "last.json.json")
        assert len(found) == len(bad) + 2
        await worker.finish()
        seen = await worker.seen()
        assert (seen.taken, seen.failed) == (len(bad) + 2, len(bad))


async def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path: Path, doors: Doors) -> None:
    manifest = folder_module(tmp_path)
    (tmp_path / "in").rename(tmp_path / "later")
    (tmp_path / "in").mkdir()  # the confinement is of what is there
    (tmp_path / "out").rmdir()
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        put(tmp_path, "a.json", "[[1, 1]]")

        async def told() -> bool:
            return "out" in (await worker.seen()).state

        await until_async(told, "the folder for results to be missed", 40)
        (tmp_path / "out").mkdir()
        await arrived(tmp_path, "a.json.json")


async def test_pictures_of_a_folder_are_decoded_and_broken_ones_told(tmp_path: Path, doors: Doors) -> None:
    script = """
    import numpy as np
    def init(): pass
    def predict(inputs):
        return {"y": inputs["x"].mean(axis=(1, 2)).astype("f4")[:, :2]}
    """
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    source = Directory(str(tmp_path / "in"), "*.png", content="image", settle_s=0.0, results=str(tmp_path / "out"))
    manifest = scripted(tmp_path, source, script, TensorSpec("x", "UINT8", (-1, 4, 6, 3)))
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[:, :, 2] = 200  # red, in OpenCV's order
    png = bytes(cv2.imencode(".png", picture)[1])
    files = {"a.png": png, "cut.png": png[:40], "b.png": png, "ignored.jpg": png}
    files["small.png"] = bytes(cv2.imencode(".png", picture[:2])[1])
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        found = await arrived(tmp_path, "a.png.json", "b.png.json", "cut.png.json", "small.png.json")
        assert found["a.png.json"]["outputs"][0]["data"] == [200, 0]
        assert "whole JPEG or PNG" in found["cut.png.json"]["error"]
        assert "got uint8 [1, 2, 6, 3]" in found["small.png.json"]["error"]


# A broker


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    (tmp_path / "broker").mkdir()
    broker = Mosquitto(tmp_path / "broker")
    user = "root" if os.getuid() == 0 else "nobody"
    (broker.folder / "mosquitto.conf").write_text(
        f"listener {broker.port} 127.0.0.1\nallow_anonymous true\nuser {user}\npersistence true\n"
        f"persistence_location {broker.folder}/\nautosave_interval 1\nlog_dest none\n"
    )
    await broker.start()
    yield broker
    await broker.kill()


def mqtt_module(tmp_path: Path, broker: Mosquitto, **options: Any) -> Manifest:
    source = Mqtt("plant/+/x", f"127.0.0.1:{broker.port}", results="plant/answers", **options)
    return scripted(tmp_path, source)


async def opened(worker: SourceDriver) -> None:
    async def is_open() -> bool:
        return (await worker.seen()).state == "open"

    await until_async(is_open, "the source to be open", 40)


async def answer(client: aiomqtt.Client) -> Any:
    async with asyncio.timeout(40):
        return json.loads(bytes((await anext(aiter(client.messages))).payload))


async def test_messages_are_predicted_and_answered_and_junk_is_told(
    tmp_path: Path, doors: Doors, broker: Mosquitto
) -> None:
    manifest = mqtt_module(tmp_path, broker)
    async with (
        SourceDriver(tmp_path / "slot", manifest, doors) as worker,
        aiomqtt.Client("127.0.0.1", broker.port) as client,
    ):
        await worker.serve()
        await opened(worker)
        await client.subscribe("plant/answers")
        payloads = [
            b"[[1, 2]]", np.array([[3, 4], [5, 6]], "<f4").tobytes(), b"junk!", b"", b"{}", b"\x00" * 7,
            json.dumps({"inputs": [json_input(np.full((1, 2), 4, np.float32))]}).encode(), b"{\xff",
        ]  # fmt: skip
        found = []
        for payload in payloads:
            await client.publish("plant/a/x", payload)
            found.append(await answer(client))
        assert [one.get("outputs", [{}])[0].get("data") for one in found] == [
            [2, 4], [6, 8, 10, 12], None, None, None, None, [8, 8], None,
        ]  # fmt: skip
        assert all(("error" in one) == ("outputs" not in one) for one in found)
        assert all(one["parameters"] == {"source": "plant/a/x"} for one in found)
        await worker.finish()
        assert {one["id"] for one in found if "outputs" in one} == {
            sample.prediction_id.partition("#")[0] for sample in worker.samples
        }
        assert (await worker.seen()).failed == 5


async def test_a_message_may_say_when_it_happened_what_it_tells(
    tmp_path: Path, doors: Doors, broker: Mosquitto
) -> None:
    then = time.time() - 5 * ALL.window_s
    async with (
        SourceDriver(tmp_path / "slot", mqtt_module(tmp_path, broker), doors) as worker,
        aiomqtt.Client("127.0.0.1", broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client,
    ):
        await worker.serve()
        await opened(worker)
        await client.subscribe("plant/answers")
        for said in (f"{then:.3f}", "junk"):
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = [("other", "1"), ("event_time", said)]
            await client.publish("plant/a/x", b"[[1, 2]]", properties=properties)
            await answer(client)
        await worker.finish()
    late, now = sorted(worker.windows, key=lambda window: window.start)
    assert (late.start, late.rows) == (then // ALL.window_s * ALL.window_s, 1)
    assert now.rows == 1
    assert now.end > time.time() - ALL.window_s


async def test_a_broker_that_goes_and_comes_back_is_found_again(
    tmp_path: Path, doors: Doors, broker: Mosquitto
) -> None:
    manifest = mqtt_module(tmp_path, broker, qos=1)
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        await opened(worker)
        await broker.kill()

        async def gone() -> bool:
            return (await worker.seen()).state != "open"

        await until_async(gone, "the loss to be seen", 40)
        await broker.start()
        await opened(worker)
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.subscribe("plant/answers")
            await client.publish("plant/a/x", b"[[1, 2]]", qos=1)
            assert (await answer(client))["outputs"][0]["data"] == [2, 4]


async def test_with_qos_1_no_message_is_lost_when_a_worker_is_killed(
    tmp_path: Path, doors: Doors, broker: Mosquitto
) -> None:
    manifest = mqtt_module(tmp_path, broker, qos=1)
    sent = 200  # more than the broker gives without acknowledgements
    heard: set[float] = set()
    async with aiomqtt.Client("127.0.0.1", broker.port) as client:
        await client.subscribe("plant/answers", qos=1)
        async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
            await worker.serve()
            await opened(worker)
            for n in range(sent // 2):
                await client.publish("plant/a/x", f"[[{n}, 0]]", qos=1)
            worker.process.kill()
            await worker.exit_code()
        for n in range(sent // 2, sent):
            await client.publish("plant/a/x", f"[[{n}, 0]]", qos=1)
        os.unlink(worker.path)
        async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
            await worker.serve()
            async with asyncio.timeout(40):
                while len(heard) < sent:
                    heard.add((await answer(client))["outputs"][0]["data"][0] / 2)
    assert heard == set(range(sent))


async def test_a_queue_that_is_full_drops_the_oldest_and_counts_it(
    tmp_path: Path, doors: Doors, broker: Mosquitto
) -> None:
    script = """
    import pathlib, time
    def init(): pass
    def predict(inputs):
        while inputs["x"][0, 0] == 0 and not pathlib.Path(GO).exists():
            time.sleep(0.01)
        return {"y": inputs["x"] * 2}
    """.replace("GO", repr(str(tmp_path / "slot" / "go")))
    source = Mqtt("plant/a/x", f"127.0.0.1:{broker.port}", results="plant/answers", queue=3)
    manifest = scripted(tmp_path, source, script)
    async with (
        SourceDriver(tmp_path / "slot", manifest, doors) as worker,
        aiomqtt.Client("127.0.0.1", broker.port) as client,
    ):
        await worker.serve()
        await opened(worker)
        await client.subscribe("plant/answers")
        await client.publish("plant/a/x", b"[[0, 0]]")  # holds the worker up
        await worker.taken(1)
        for n in range(1, 11):
            await client.publish("plant/a/x", f"[[{n}, 0]]")

        async def dropped() -> bool:
            return (await worker.seen()).dropped == 7

        await until_async(dropped, "seven dropped", 40)
        (tmp_path / "slot" / "go").touch()
        found = [(await answer(client))["outputs"][0]["data"][0] / 2 for _ in range(4)]
        assert found == [0, 8, 9, 10]


# A video


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (32, 24))
    assert writer.isOpened()
    for n in range(frames):
        writer.write(np.full((24, 32, 3), n * 10, np.uint8))
    writer.release()


MEAN = """
    import numpy as np
    def init(): pass
    def predict(inputs):
        x = inputs["x"]
        return {"y": np.array([[x.mean(), x.shape[1]]], "f4")}
"""


async def test_every_frame_of_a_video_comes_in_its_order(tmp_path: Path, doors: Doors) -> None:
    write_video(tmp_path / "v.avi", 12)
    (tmp_path / "out").mkdir()
    source = Video(str(tmp_path / "v.avi"), latest=False, results=str(tmp_path / "out"))
    manifest = scripted(
        tmp_path, source, MEAN, TensorSpec("x", "UINT8", (1, 12, 16, 3)), TensorSpec("y", "FP32", (1, 2))
    )
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        found = await arrived(tmp_path, *(f"{n:03d}.json" for n in range(1, 13)))
        means = [found[f"{n:03d}.json"]["outputs"][0]["data"][0] for n in range(1, 13)]
        np.testing.assert_allclose(means, np.arange(12) * 10, atol=3)

        async def ended() -> bool:
            return "end of the file" in (await worker.seen()).state

        await until_async(ended, "the end", 40)
        assert (await worker.seen()).taken == 12


async def test_frames_that_come_while_a_prediction_runs_are_dropped(tmp_path: Path, doors: Doors) -> None:
    write_video(tmp_path / "v.avi", 25)
    slow = MEAN.replace("x = inputs", "import time; time.sleep(0.2); x = inputs")
    source = Video(str(tmp_path / "v.avi"), repeat=True)
    manifest = scripted(
        tmp_path, source, slow, TensorSpec("x", "UINT8", (1, -1, -1, 1)), TensorSpec("y", "FP32", (1, 2))
    )
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()
        await worker.taken(8)
        assert (await worker.seen()).dropped > 0
        await worker.finish()


async def test_a_file_that_is_no_video_is_told_and_tried_again(tmp_path: Path, doors: Doors) -> None:
    (tmp_path / "v.avi").write_bytes(b"RIFF" + bytes(100))
    source = Video(str(tmp_path / "v.avi"))
    manifest = scripted(
        tmp_path, source, MEAN, TensorSpec("x", "UINT8", (1, -1, -1, 3)), TensorSpec("y", "FP32", (1, 2))
    )
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        await worker.serve()

        async def told() -> bool:
            return "OpenCV cannot open it" in (await worker.seen()).state

        await until_async(told, "the failure", 40)
        write_video(tmp_path / "v.avi", 5)
        await worker.taken(1)


# What the device allows


async def test_a_worker_reads_the_folder_of_its_source_and_no_other(tmp_path: Path, doors: Doors) -> None:
    (tmp_path / "in").mkdir()
    put(tmp_path, "mine", "x")
    (tmp_path / "secret").write_text("y")
    script = (
        DOUBLE
        + f"""
    import os
    def loop():
        assert open({str(tmp_path / "in" / "mine")!r}).read() == "x"
        for path in ({str(tmp_path / "secret")!r}, {str(tmp_path / "memory")!r}):
            try:
                open(path).read()
            except PermissionError:
                continue
            raise AssertionError(path)
        inside = {str(tmp_path / "in")!r}
        for act in (lambda: open(inside + "/new", "w"), lambda: os.unlink(inside + "/mine")):
            try:
                act()
            except OSError:
                continue
            raise AssertionError("written")
        yield [[1, 2]]
    """
    )
    (tmp_path / "memory").mkdir()
    manifest = write_module(
        tmp_path / "slot", {"s.py": textwrap.dedent(script).encode()}, inputs=(X,), outputs=(Y,),
        runtime=Runtime(model="", entry="s.py", sources=(Script(), Directory(str(tmp_path / "in"), "*.none"))),
    )  # fmt: skip
    async with SourceDriver(tmp_path / "slot", manifest, doors) as worker:
        ready = await worker.serve()
        if "landlock" not in ready.confinement:
            pytest.skip("this kernel has no Landlock")

        async def done() -> bool:
            assert "failed" not in (await worker.stats()).sources[0].state
            return (await worker.stats()).rows == 1

        await until_async(done, "the loop", 40)


@pytest.mark.usefixtures("readable_by_all")
async def test_sources_work_in_namespaces_and_for_a_user_of_its_own(
    tmp_path: Path, doors: Doors, broker: Mosquitto
) -> None:
    uid = 60_977 if may_become(60_977) else 0
    found = await Cages.find(ServingSettings(), uid, groups=False)
    if not found.bwrap:
        pytest.skip(f"bubblewrap does not work here: {'; '.join(found.possible.why_not_higher)}")
    (tmp_path / "in").mkdir(mode=0o755)
    (tmp_path / "in").chmod(0o755)
    (tmp_path / "out").mkdir()
    folder = Directory(str(tmp_path / "in"), settle_s=0.0, every_s=0.2, results=str(tmp_path / "out"))
    topic = Mqtt("plant/a/x", f"127.0.0.1:{broker.port}", results="plant/answers")
    manifest = write_module(
        tmp_path / "slot", {"s.py": textwrap.dedent(DOUBLE).encode()}, inputs=(X,), outputs=(Y,),
        runtime=Runtime(model="", entry="s.py", sources=(folder, topic)),
    )  # fmt: skip
    room = with_places(NO_ROOM, places(manifest.runtime.sources))
    cage = bubblewrap(found.bwrap, tmp_path / "slot", uid, room=room)
    async with (
        SourceDriver(tmp_path / "slot", manifest, doors, uid, cage) as worker,
        aiomqtt.Client("127.0.0.1", broker.port) as client,
    ):
        ready = await worker.serve()
        assert "net" in ready.confinement
        put(tmp_path, "a.json", "[[1, 2]]")
        assert (await arrived(tmp_path, "a.json.json"))["a.json.json"]["outputs"][0]["data"] == [2, 4]

        async def both() -> bool:
            return [one.state for one in (await worker.stats()).sources] == ["open", "open"]

        await until_async(both, "both sources to be open", 40)
        await client.subscribe("plant/answers")
        await client.publish("plant/a/x", b"[[3, 4]]")
        assert (await answer(client))["outputs"][0]["data"] == [6, 8]


def wanting(*sources: Source) -> Manifest:
    return Manifest("m", 1, "pi", Lineage("m", 1), (X,), (Y,), (), Runtime(model="", sources=sources))


@pytest.mark.parametrize(
    ("source", "allowed", "missing"),
    [
        (Directory("/data/in"), (), '"/data/in"'),
        (Directory("/data/in"), ("/data/i",), '"/data/in"'),
        (Directory("/data/in", results="/data/out"), ("/data/in",), '"write:/data/out"'),
        (Directory("/data/in", results="/data/out"), ("/data",), '"write:/data/out"'),
        (Mqtt("t", "10.0.0.1:1883"), ("mqtt:127.0.0.1:1883",), '"mqtt:10.0.0.1:1883"'),
        (Video("/dev/video0"), ("/dev/video1",), '"/dev/video0"'),
        (Video("/dev/video0", pipeline="v4l2src ! appsink"), ("/dev/video0",), '"gstreamer"'),
    ],
)
def test_a_source_that_the_device_does_not_allow_is_refused_with_what_would(
    source: Source, allowed: tuple[str, ...], missing: str
) -> None:
    with pytest.raises(SourceNotAllowed, match=missing):
        check_allowed(wanting(source), allowed)


def test_what_is_allowed_covers_what_lies_below_and_no_link_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    allowed = (str(tmp_path / "in"), f"write:{tmp_path}", "mqtt:[::1]:1883")
    check_allowed(wanting(Directory(str(tmp_path / "in" / "sub"), results=str(tmp_path / "out")), Script()), allowed)
    with pytest.raises(SourceNotAllowed, match="link"):
        check_allowed(wanting(Directory(str(tmp_path / "in" / "link"))), allowed)


class Caller:
    """A worker that says what it likes through its door."""

    def __init__(self, doors: Doors, *sources: Source) -> None:
        self.door = doors.open("m", sources)
        self.loop = asyncio.get_running_loop()
        self.socket = socket.socket(fileno=os.dup(self.door.handle))
        self.socket.setblocking(False)
        self.door.given()

    async def ask(self, ask: Any) -> Answer:
        await self.loop.sock_sendall(self.socket, framed(ask) if not isinstance(ask, bytes) else ask)
        async with asyncio.timeout(20):
            data = b""
            while len(data) < 4 or len(data) < 4 + LENGTH.unpack(data[:4])[0]:
                part = await self.loop.sock_recv(self.socket, 65_536)
                if not part:
                    raise EOFError
                data += part
        return answers.decode(data[4:])


async def test_the_door_gives_only_what_the_manifest_names(tmp_path: Path, doors: Doors) -> None:
    (tmp_path / "out").mkdir()
    caller = Caller(doors, Directory(str(tmp_path), results=str(tmp_path / "out")), Mqtt("t", "127.0.0.1:1"))
    other = Caller(doors, Directory(str(tmp_path)))
    assert not (await caller.ask(Begin())).why
    assert "another worker" in (await other.ask(Begin())).why
    assert "not this worker's turn" in (await other.ask(Claim(0, ()))).why
    (tmp_path / "a").touch()
    assert not (await caller.ask(Write(0, "a.json", b"{}"))).why
    for name in ("b.json", "a", "a.txt", "out.json"):  # not there, or no file
        assert "a file that is there" in (await caller.ask(Write(0, name, b"{}"))).why
    for name in ("../a", "a/b", ".hidden", "", "x" * 300, "nul\0"):
        assert "expected a file's name" in (await caller.ask(Write(0, name, b""))).why
    assert "folder for results" in (await caller.ask(Write(1, "a", b""))).why
    assert "folder for results" in (await caller.ask(Write(7, "a", b""))).why
    assert "expected files" in (await caller.ask(Claim(1, (File("a", 1, 1),)))).why
    assert not (await caller.ask(Note(0, (File("a", 1, 1), File("b", 1, 1), File("../x", 1, 1))))).why
    assert (await caller.ask(Claim(0, (File("a", 1, 1), File("b", 1, 1))))).fresh == (1,)  # only what is there
    assert "expected a source with a broker" in (await caller.ask(Dial(0))).why
    assert (await caller.ask(Dial(1))).why  # nobody listens there
    with pytest.raises((EOFError, ConnectionError)):
        await caller.ask(b"\xff\xff\xff\xff")

    async def has_turn() -> bool:
        return not (await other.ask(Begin())).why

    await until_async(has_turn, "the turn of the other")
    for one in (caller, other):
        one.socket.close()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json"]


def test_what_is_done_is_known_after_a_power_cut_in_any_write(tmp_path: Path) -> None:
    files = [File(f"{n}", n, n) for n in range(20)]
    folder = tmp_path / "folder"
    folder.mkdir()
    memory = Memory(tmp_path / "log", folder)
    assert memory.fresh(files) == tuple(range(20))
    memory.note(files[:10])
    whole = (tmp_path / "log").read_bytes()
    memory.note(files[10:12])
    later = (tmp_path / "log").read_bytes()
    for cut in range(len(whole), len(later) + 1):
        (tmp_path / "log").write_bytes(later[:cut])
        for file in files:
            (folder / file.name).touch()
        again = Memory(tmp_path / "log", folder)
        assert set(again.fresh(files)) >= set(range(12, 20))
        assert set(again.fresh(files)) <= set(range(10, 20))
        again.note(files[12:14])
        assert not set(Memory(tmp_path / "log", folder).fresh(files)) & {*range(10), 12, 13}


def test_files_that_are_gone_are_forgotten_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    memory = Memory(tmp_path / "log", folder)
    for block in range(30):
        memory.note([File(f"{block}-{n}", n, n) for n in range(100)])
        memory.note([File("kept", block, block)])
    assert len((tmp_path / "log").read_bytes().splitlines()) <= LEAST_LINES + 101
    (folder / "kept").touch()
    for n in range(LEAST_LINES + 100):
        memory.note([File("kept", n, n)])
    assert len((tmp_path / "log").read_bytes().splitlines()) <= LEAST_LINES + 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Script(), "with loop"),
        (Directory("relative"), "absolute path"),
        (Directory("/a/../b"), "absolute path"),
        (Directory("/a", input="z"), "input among x"),
        (Directory("/a", content="text"), "BYTES input"),
        (Directory("/a", content="image"), "UINT8"),
        (Directory("/a", every_s=0), "every_s"),
        (Mqtt(""), "a topic"),
        (Mqtt("a/#/b"), "a topic"),
        (Mqtt("a", results="b/+"), "without"),
        (Mqtt("a", results="a"), "another topic"),
        (Mqtt("a", "nowhere"), "host:port"),
        (Mqtt("a", "h:99999"), "host:port"),
        (Video("/v.avi"), "UINT8 input"),
    ],
)
def test_a_source_that_does_not_fit_the_module_is_refused_when_it_is_built(source: Source, text: str) -> None:
    with pytest.raises(SourceError, match=text):
        check_sources((source,), (X,), scripted=False)


async def test_messages_that_wait_run_together_where_golden_inputs_allow_it(
    tmp_path: Path, doors: Doors, broker: Mosquitto, digits: Digits, reference: ReferenceProfile
) -> None:
    """A model: a script is called for each."""
    files = {"model.onnx": digits.onnx, "golden": golden_set(digits), "reference": encode_reference(reference)}
    source = Mqtt("plant/a/x", f"127.0.0.1:{broker.port}", results="plant/answers", content="raw")
    manifest = write_module(
        tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS, reference="reference",
        health=Health(golden="golden"), runtime=Runtime(sources=(source,)),
    )  # fmt: skip
    async with (
        SourceDriver(tmp_path / "slot", manifest, doors) as worker,
        aiomqtt.Client("127.0.0.1", broker.port) as client,
    ):
        await worker.serve()
        await opened(worker)
        await client.subscribe("plant/answers", qos=1)
        rows = [digits.x[at : at + 1 + at % 3] for at in range(100)]
        rows[50] = np.full((1, 64), np.nan, np.float32)  # never missing in training
        for some in rows:
            await client.publish("plant/a/x", some.tobytes(), qos=1)
        found = [await answer(client) for _ in rows]
        assert "expected numbers" in found.pop(50)["error"]
        labels = [output["data"] for one in found for output in one["outputs"] if output["name"] == "label"]
        expected = [digits.labels[at : at + 1 + at % 3].tolist() for at in range(100) if at != 50]
        assert labels == expected
        await worker.finish()
        assert sum(window.rows for window in worker.windows) == sum(map(len, expected))


async def test_a_loop_beside_a_model_feeds_it_and_needs_no_parent(tmp_path: Path, digits: Digits) -> None:
    """As `mooring module run` starts it: nobody to ask, nothing to wait for."""
    loop = b"""
import numpy as np
def loop(stop):
    yield None
    rows = np.load(FILE)
    rows.flags.writeable = False
    yield rows
    yield {"x": rows[:3]}
"""
    saved = io.BytesIO()
    np.save(saved, digits.x[:7])
    files = {
        "model.onnx": digits.onnx, "golden": golden_set(digits), "rows.npy": saved.getvalue(),
        "loop.py": loop.replace(b"FILE", repr(str(tmp_path / "slot" / "rows.npy")).encode()),
    }  # fmt: skip
    manifest = write_module(
        tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS, health=Health(golden="golden"),
        runtime=Runtime(sources=(Script("loop.py"),)),
    )  # fmt: skip
    assert manifest.runtime.scripted
    assert not manifest.runtime.answers_by_script
    async with WorkerDriver(tmp_path / "slot", manifest, ALL) as worker:
        await worker.serve()

        async def ten() -> bool:
            return (await worker.stats()).rows == 10

        await until_async(ten, "ten rows", 40)
        await worker.order(Drain(10.0), Drained)
        found = sorted(int(np.frombuffer(sample.outputs[0].data, "<i8")[0]) for sample in worker.samples)
        assert found == sorted([*digits.labels[:7].tolist(), *digits.labels[:3].tolist()])
