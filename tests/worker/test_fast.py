"""The shared-memory path against clients that lie, shrink, crowd and die; and what the watch sees of it."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.sandbox.given import Given
from agent.sandbox.protocol import Drain, Drained
from firmware_profiles.confinement import Confinement
from modules.manifest import Manifest, SamplingPolicy
from modules.windows import ReferenceProfile, encode_reference
from mooring_client import AsyncClient, Refused, wire
from mooring_client.desk import Desk
from mooring_client.wire import Placed
from support.waiting import until, until_async
from worker.conftest import INPUTS, OUTPUTS, Digits, _profiled
from worker.driver import WorkerDriver, running_as_root, write_module
from worker.test_confinement import UID, isolating

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
AREA = 64 * 1024


class Raw:
    """A client that can say anything. `hear` gives the next packet, b"" at the end."""

    def __init__(self, worker: WorkerDriver) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(30)
        self._sock.connect(worker.path.replace(".sock", ".fast.sock"))
        self.first = self.hear()

    def hear(self) -> bytes:
        try:
            return self._sock.recv(wire.MAX_MESSAGE)
        except ConnectionResetError:
            return b""

    def say(self, message: bytes) -> bytes:
        self._sock.send(message)
        return self.hear()

    def show(self, *files: int, size: int = AREA, message: bytes = b"") -> bytes:
        socket.send_fds(self._sock, [message or wire.area(size)], list(files))
        return self.hear()

    def close(self) -> None:
        self._sock.close()


@contextmanager
def memory(size: int = AREA, seals: int = SEALS, flags: int = os.MFD_ALLOW_SEALING) -> Iterator[int]:
    handle = os.memfd_create("test", os.MFD_CLOEXEC | flags)
    try:
        os.ftruncate(handle, size)
        if seals:
            fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
        yield handle
    finally:
        os.close(handle)


def seated(worker: WorkerDriver) -> Raw:
    """With an area of zeros."""
    raw = Raw(worker)
    with memory() as handle:
        assert raw.show(handle) == wire.TAKEN
    return raw


def asked(at: int = 256, outputs: tuple[int, ...] = (), **change: Any) -> bytes:
    """A request for one row of digits, but for what is changed."""
    place = Placed(0, (1, 64), 0, 256)._replace(**change)
    return wire.head(-1, b"") + wire.body(at, [place], outputs)


async def still_answers(worker: WorkerDriver, digits: Digits) -> None:
    async with AsyncClient(worker.path, model="digits") as client:
        assert (await client.predict(x=digits.x[:1]))["label"][0] == digits.labels[0]


LIES = [
    (asked(tensor=1), "inputs: expected x, got number 1"),
    (asked(shape=(2, 64)), "input x: expected 512 bytes, got 256"),
    (asked(shape=(1, 63)), "input x: expected shape [-1, 64], got [1, 63]"),
    (asked(shape=(64,)), "input x: expected shape [-1, 64], got [64]"),
    (asked(shape=(0, 64), size=0), "input x: expected shape [-1, 64], got [0, 64]"),
    (asked(shape=(2**62, 64), size=256), "input x: expected"),
    (asked(shape=(2**56, 64), size=2**64 - 1), "input x: expected"),
    (asked(shape=(2**52, 64), size=2**60), "input x: expected a place within 65536 bytes"),
    (asked(offset=AREA), "input x: expected a place within 65536 bytes"),
    (asked(offset=2**64 - 64), "input x: expected a place within 65536 bytes"),
    (asked(offset=4), "input x: expected a place within 65536 bytes"),
    (asked(at=0), "outputs: expected a place for them behind the inputs, got 0"),
    (asked(at=257), "outputs: expected a place for them behind the inputs, got 257"),
    (asked(at=2**63), "outputs: expected a place for them behind the inputs"),
    (asked(outputs=(2,)), "outputs: expected each of 2 at most once, got (2,)"),
    (asked(outputs=(0, 0)), "outputs: expected each of 2 at most once, got (0, 0)"),
    (wire.head(-1, b"") + wire.body(0, [], ()), "inputs: expected x, got none"),
    (wire.head(-1, b"") + wire.body(512, [Placed(0, (1, 64), 0, 256)] * 2, ()), "inputs: expected x, got x, x"),
    (wire.head(-1, b"\xff") + asked()[4:], "id: expected UTF-8 text"),
]


async def test_a_lying_request_is_refused_and_the_connection_goes_on(worker: WorkerDriver) -> None:
    def lie() -> list[tuple[bytes, bytes]]:
        raw = seated(worker)
        try:
            return [(raw.say(request), raw.say(asked())) for request, _ in LIES]
        finally:
            raw.close()

    for (said, after), (_, words) in zip(await asyncio.to_thread(lie), LIES, strict=True):
        refusal = wire.refusal(said)
        assert isinstance(refusal, Refused), (words, said)
        assert refusal.status == 400
        assert words in str(refusal)
        assert after[:1] == wire.DONE
    await until_refused(worker, len(LIES))


async def until_refused(worker: WorkerDriver, count: int) -> None:
    async def counted() -> bool:
        return (await worker.stats()).refused >= count

    await until_async(counted, f"{count} refusals to be counted on the loop")


NONSENSE = (
    b"X",
    b"P",
    b"W{}",
    wire.area(AREA),  # nobody announced
    wire.head(-1, b""),
    asked()[:-3],
    asked() + b"\0",
    b"P" * wire.MAX_MESSAGE,
    b"G" * 9,
    wire.head(-1, b"") + struct.pack("<QH", 0, 65535),  # so many inputs, and none there
)


async def test_what_is_no_message_ends_the_connection_and_nothing_else(worker: WorkerDriver, digits: Digits) -> None:
    def speak(packet: bytes) -> tuple[bytes, bytes]:
        raw = seated(worker)
        try:
            return raw.say(packet), raw.hear()
        finally:
            raw.close()

    for packet in NONSENSE:
        said, after = await asyncio.to_thread(speak, packet)
        assert said[:1] == wire.REFUSED, packet[:80]
        assert after == b"", packet[:80]
    await still_answers(worker, digits)


def unsealed(raw: Raw) -> bytes:
    with memory(seals=0) as handle:
        return raw.show(handle)


def half_sealed(raw: Raw) -> bytes:
    with memory(seals=fcntl.F_SEAL_GROW) as handle:
        return raw.show(handle)


def smaller(raw: Raw) -> bytes:
    with memory(size=4096) as handle:
        return raw.show(handle)


def too_large(raw: Raw) -> bytes:
    with memory() as handle:
        return raw.show(handle, size=2**40)


def empty(raw: Raw) -> bytes:
    with memory(size=0) as handle:
        return raw.show(handle, size=0)


def read_only(raw: Raw) -> bytes:
    with memory(seals=SEALS | fcntl.F_SEAL_WRITE) as handle:
        return raw.show(handle)


def a_file(raw: Raw) -> bytes:
    with tempfile.TemporaryFile() as file:
        file.truncate(AREA)
        return raw.show(file.fileno())


def none(raw: Raw) -> bytes:
    return raw.say(wire.area(AREA))


def several(raw: Raw) -> bytes:
    with memory() as one, memory() as two:
        return raw.show(one, two)


def no_area(raw: Raw) -> bytes:
    with memory() as handle:
        return raw.show(handle, message=b"A")


AREAS = (unsealed, half_sealed, smaller, too_large, empty, read_only, a_file, none, several, no_area)


async def test_memory_that_could_harm_the_worker_is_not_taken(worker: WorkerDriver, digits: Digits) -> None:
    def offer(show: Callable[[Raw], bytes]) -> tuple[bytes, bytes]:
        raw = Raw(worker)
        try:
            return show(raw), raw.hear()
        finally:
            raw.close()

    for show in AREAS:
        said, after = await asyncio.to_thread(offer, show)
        assert said[:1] == wire.REFUSED, (show.__name__, said)
        assert after == b"", show.__name__
    await still_answers(worker, digits)


async def test_huge_pages_are_not_taken(worker: WorkerDriver) -> None:
    """None may be left when the worker touches one, which kills as a shrunk file does."""

    def offer() -> bytes:
        raw = Raw(worker)
        try:
            with memory(size=2 * 2**20, flags=os.MFD_ALLOW_SEALING | os.MFD_HUGETLB) as handle:
                return raw.show(handle, size=2 * 2**20)
        finally:
            raw.close()

    try:
        said = await asyncio.to_thread(offer)
    except OSError as error:
        pytest.skip(f"no huge pages here: {error}")
    assert "huge" in str(wire.refusal(said))


async def test_what_was_taken_cannot_shrink(worker: WorkerDriver) -> None:
    def shrink() -> bytes:
        raw = Raw(worker)
        try:
            with memory() as handle:
                assert raw.show(handle) == wire.TAKEN
                with pytest.raises(PermissionError):
                    os.ftruncate(handle, 4096)
                return raw.say(asked())
        finally:
            raw.close()

    assert (await asyncio.to_thread(shrink))[:1] == wire.DONE


async def test_a_hundred_clients_at_once_are_bounded_and_those_beyond_are_told(
    worker: WorkerDriver, digits: Digits
) -> None:
    def crowd() -> tuple[int, list[str]]:
        everybody = [Raw(worker) for _ in range(100)]
        turned_away = [str(wire.refusal(raw.first)) for raw in everybody if raw.first[:1] == wire.REFUSED]
        for raw in everybody:
            raw.close()
        return sum(raw.first[:1] == wire.WELCOME for raw in everybody), turned_away

    served, turned_away = await asyncio.to_thread(crowd)
    assert served == 32
    assert len(turned_away) == 68
    assert all("expected at most 32 clients of shared memory at once" in text for text in turned_away)

    async def there_is_room() -> bool:
        try:
            await still_answers(worker, digits)
        except Refused:
            return False
        return True

    await until_async(there_is_room, "room for another client")


async def test_a_client_that_is_killed_in_the_middle_leaves_nothing(worker: WorkerDriver, digits: Digits) -> None:
    program = (
        "import sys, os\nfrom mooring_client.shared import SharedLink\nfrom mooring_client import wire, Tensor\n"
        "link = SharedLink(sys.argv[1], 30.0, 1 << 20, True, False)\n"
        "body, _ = link._desk.prepare({'x': Tensor('FP32', (512, 64), bytes(512 * 256))}, ())\n"
        "link._send(wire.head(-1, b'') + body)\nos.kill(os.getpid(), 9)\n"
    )
    fast = worker.path.replace(".sock", ".fast.sock")
    process = Path(f"/proc/{worker.process.pid}")
    await still_answers(worker, digits)
    await until(lambda: areas(process) == 0, "the first client's memory to go")
    before = threads(process)
    for _ in range(3):
        done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program, fast], timeout=30, check=False)
        assert done.returncode == -signal.SIGKILL
    await still_answers(worker, digits)
    await until(lambda: areas(process) == 0 and threads(process) <= before, "threads and memory to go")


def threads(process: Path) -> int:
    return len(list((process / "task").iterdir()))


def areas(process: Path) -> int:
    return (process / "maps").read_text().count("memfd:")


async def test_users_who_may_not_ask_are_turned_away(tmp_path: Path, digits_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", digits_module, given=Given(peers=(os.getuid() + 1,))) as worker:
        await worker.serve()
        async with AsyncClient(worker.path, model="digits", transport="shared-memory") as client:
            with pytest.raises(Refused, match="users that may use this module") as refused:
                await client.metadata()
            assert refused.value.status == 403


async def test_windows_and_samples_see_what_came_over_shared_memory(worker: WorkerDriver, digits: Digits) -> None:
    async with AsyncClient(worker.path, model="digits") as client:
        said = [await client.ask({"x": digits.x[n : n + 1]}, id=f"p{n}") for n in range(30)]
        many = await client.ask({"x": digits.x[:200]}, id="many")
        with pytest.raises(Refused):
            await client.predict(x=np.full((1, 64), np.nan, np.float32))
    assert [one.id for one in (*said, many)] == [*(f"p{n}" for n in range(30)), "many"]
    await until_refused(worker, 1)
    await worker.order(Drain(10.0), Drained)
    window = worker.windows[-1]
    assert (window.rows, window.errors, window.refused) == (230, 0, 1)
    samples = {sample.prediction_id: sample for sample in worker.samples}
    assert len(samples) == 230
    for n in range(30):
        np.testing.assert_array_equal(np.frombuffer(samples[f"p{n}"].inputs[0].data, "<f4"), digits.x[n])
    np.testing.assert_array_equal(np.frombuffer(samples["many#7"].inputs[0].data, "<f4"), digits.x[7])
    assert {len(sample.outputs) for sample in samples.values()} == {2}


@pytest.fixture
def numbers_only(tmp_path: Path, digits: Digits) -> Manifest:
    """Digits without its labels, which are integers: what a backend may read and write in the client's memory."""
    confidence = digits.probabilities.max(axis=1)
    pixels = tuple(_profiled(f"pixel {i}", "x", digits.x[:, i], i) for i in range(20, 28))
    profile = ReferenceProfile(
        len(digits.x), pixels, (_profiled("confidence", "probabilities", confidence, 0, take="max"),)
    )
    files = {"model.onnx": digits.onnx, "reference.json": encode_reference(profile)}
    return write_module(tmp_path / "slot", files, inputs=INPUTS, outputs=OUTPUTS[1:], reference="reference.json")


async def test_what_runs_in_the_clients_memory_is_answered_and_seen_as_any_other(
    tmp_path: Path, numbers_only: Manifest, digits: Digits
) -> None:
    policy = SamplingPolicy(rate=1.0, window_s=3600)
    nan = digits.x[:1].copy()
    nan[0, 25] = np.nan
    async with WorkerDriver(tmp_path / "slot", numbers_only, policy) as worker:
        await worker.serve()
        async with AsyncClient(worker.path, model="digits") as client:
            for n in range(40):
                said = await client.ask({"x": digits.x[n : n + 1]}, id=f"p{n}")
                np.testing.assert_allclose(said["probabilities"], digits.probabilities[n : n + 1], 1e-3, 1e-4)
                if n % 10 == 5:
                    with pytest.raises(Refused, match="got NaN in 1 of 64 elements, the first at 25"):
                        await client.predict(x=nan)
                if n % 10 == 7:
                    few = await client.ask({"x": digits.x[n : n + 3]}, id=f"few{n}")
                    np.testing.assert_allclose(few["probabilities"], digits.probabilities[n : n + 3], 1e-3, 1e-4)
        await until_refused(worker, 4)
        await worker.order(Drain(10.0), Drained)
    assert (worker.windows[-1].rows, worker.windows[-1].refused) == (40 + 4 * 3, 4)
    samples = {sample.prediction_id: sample for sample in worker.samples}
    assert len(samples) == 52
    for name, n in [*((f"p{n}", n) for n in range(40)), ("few17#2", 19)]:
        np.testing.assert_array_equal(np.frombuffer(samples[name].inputs[0].data, "<f4"), digits.x[n])
        seen = np.frombuffer(samples[name].outputs[0].data, "<f4")
        np.testing.assert_allclose(seen, digits.probabilities[n], 1e-3, 1e-4)


def test_only_small_numbers_are_run_in_the_clients_memory(
    tmp_path: Path, numbers_only: Manifest, digits_module: Manifest, digits: Digits
) -> None:
    from agent.backends.onnx import OnnxBackend
    from agent.backends.place import Place
    from agent.fast.bound import bind
    from agent.fast.plan import Plan

    def bound(manifest: Manifest, rows: int) -> bool:
        backend = OnnxBackend()
        backend.load(manifest.stages[0], Place(tmp_path / "slot", frozenset({"model.onnx"})))
        size, at = rows * 256, wire.aligned(rows * 256)
        area = mmap.mmap(-1, 2 * at + 4096)
        area[:size] = digits.x[:rows].tobytes()
        plan = Plan(manifest, area, wire.body(at, [Placed(0, (rows, 64), 0, size)], ()))
        plan.write(backend.run(plan.inputs()))
        area[at : at + 40] = bytes(40)
        found = bind(plan, manifest, area, backend, frozenset())
        if found is None:
            return False
        found.run({})
        told = np.frombuffer(area[at : at + 40], np.float32)
        np.testing.assert_allclose(told, digits.probabilities[0], 1e-3, 1e-4)
        return True

    assert bound(numbers_only, 1)
    assert bound(numbers_only, 40)
    assert not bound(numbers_only, 100), "too large to be copied for the watch"
    assert not bound(digits_module, 1), "labels are integers, which a model may use as indices"


async def test_large_inputs_that_nobody_watches_are_not_copied_and_still_counted(
    tmp_path: Path, digits: Digits
) -> None:
    plain = write_module(tmp_path / "slot", {"model.onnx": digits.onnx}, inputs=INPUTS, outputs=OUTPUTS)
    policy = SamplingPolicy(rate=0.0, first=0, window_s=3600)
    async with WorkerDriver(tmp_path / "slot", plain, policy) as worker:
        await worker.serve()
        async with AsyncClient(worker.path, model="digits") as client:
            for _ in range(5):
                said = await client.predict(x=digits.x)
                np.testing.assert_array_equal(said["label"], digits.labels)
        await worker.order(Drain(10.0), Drained)
        assert worker.windows[-1].rows == 5 * len(digits.x)
        assert (await worker.stats()).dropped_samples == 0


@pytest.mark.parametrize("level", [Confinement.CONFINED, Confinement.ISOLATED], ids=lambda level: level.value)
@pytest.mark.usefixtures("readable_by_all")
async def test_it_works_in_full_confinement(
    tmp_path: Path, digits_module: Manifest, digits: Digits, level: Confinement
) -> None:
    uid = UID if running_as_root() else 0
    cage = await asyncio.to_thread(isolating, tmp_path / "slot", uid) if level is Confinement.ISOLATED else ()
    async with WorkerDriver(tmp_path / "slot", digits_module, uid=uid, cage=cage) as worker:
        ready = await worker.serve()
        if "seccomp" not in ready.confinement:
            pytest.skip(f"no seccomp here: {ready.confinement}")
        async with AsyncClient(worker.path, model="digits", transport="shared-memory") as client:
            for rows in (1, 300, 1797):  # a larger area each time
                said = await client.predict(x=digits.x[:rows])
                np.testing.assert_array_equal(said["label"], digits.labels[:rows])


def test_worker_and_client_speak_of_the_same_protocol() -> None:
    """Neither may import the other, so each has a file of it."""
    from agent.fast import wire as ours

    names = ("PROTOCOL", "MAX_MESSAGE", "ALIGN", "WELCOME", "AREA", "TAKEN", "GROW", "PREDICT", "DONE", "MORE")
    assert [getattr(ours, name) for name in names] == [getattr(wire, name) for name in names]
    place = Placed(3, (2, 5), 64, 40)
    read = ours.read_body(wire.body(128, [place], (1, 0)))
    assert (read.at, tuple(map(tuple, read.inputs)), read.outputs) == (128, (tuple(place),), (1, 0))
    assert [tuple(p) for p in wire.read_layout(ours.layout([ours.Placed(*place)]))] == [tuple(place)]
    assert ours.done(b"id", b"rest") == wire.DONE + b"\2idrest"
    assert isinstance(more := wire.not_done(ours.more(4096)), wire.MoreRoom)
    assert more.size == 4096
    assert ours.read_area(wire.area(4096)) == 4096
    assert str(wire.refusal(ours.refused(503, "later"))) == "later"


def test_a_client_that_makes_its_memory_again_lets_the_old_one_go() -> None:
    welcome = wire.read_welcome(
        b'W{"protocol":1,"model":"m","version":"1","area_bytes":1048576,"cpus":[],'
        b'"inputs":[{"name":"x","datatype":"FP32","shape":[-1,2]}],"outputs":[]}'
    )
    before = len(os.listdir("/proc/self/fd"))
    desk = Desk(welcome)
    for size in (8192, 65536, 2**20):
        desk.make(size)
    desk.close()
    del desk
    assert len(os.listdir("/proc/self/fd")) == before
