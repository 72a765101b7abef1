"""A device with a board, without one, or with a broken one: what is programmed, who answers, and what is said of it.

Agent's runtime and workers are real; the kernel and the circuit are a thread on a folder (`support.fpga_kernel`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.config import ServingSettings, StatePaths
from agent.errors import WorkerError
from agent.formats import FormatError, check_formats
from agent.fpga.fabric import Fabric
from agent.sandbox.host import WorkerProcess
from agent.store import AgentStore
from fpga.conftest import MACHINE, Made
from modules.execution import StageExecution
from modules.manifest import Runtime, encode_manifest
from modules.overlay import EMULATION
from support.built import Built
from support.fpga_kernel import Board
from support.fpga_modules import BITSTREAM, Device, entry, golden_of, module, posted
from support.waiting import until
from worker.driver import running_as_root

pytestmark = pytest.mark.timeout(300)  # the first test of a run waits for the compiler
ASKED = (EMULATION,)
OPEN = ServingSettings(confine=False, preload="off")
Build = Callable[..., Built]
Start = Callable[..., Any]


@pytest.fixture
def build(made: Made) -> Build:
    """A module of the overlay; `files` replace those of its folder."""
    answers = np.load(made.answers)
    golden = golden_of(made.overlay, answers["X"][:6], answers["probabilities"][:6])

    def built(files: dict[str, bytes] | None = None, **changed: Any) -> Built:
        overlay = msgspec.structs.replace(made.overlay, **changed.pop("overlay", {}))
        return module(overlay, {**made.files, **(files or {})}, changed.pop("golden", golden), **changed)

    return built


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """A device whose machine is `root`."""

    @asynccontextmanager
    async def started(
        root: Path = Path("/"), settings: ServingSettings = OPEN, deadline_s: float = 30.0
    ) -> AsyncIterator[Device]:
        paths = StatePaths(tmp_path / "state")
        for folder in (paths.root, paths.staging, paths.slots, paths.endpoints, paths.root / "logs"):
            folder.mkdir(exist_ok=True)
        async with AgentStore(paths.database) as store:
            device = Device(paths, store, settings, Fabric(settings.fpga_emulation, root, deadline_s))
            try:
                yield device
            finally:
                await device.close()

    return started


@pytest.fixture
def board(tmp_path: Path, made: Made) -> Callable[..., Board]:
    return lambda **options: Board(tmp_path / "machine", made.emulated, made.overlay.input.row, **options)


def execution(worker: WorkerProcess) -> StageExecution:
    assert worker.ready is not None
    (stage,) = worker.ready.stages
    return stage


def no_board(tmp_path: Path) -> Path:
    root = tmp_path / "plain"
    root.mkdir()
    return root


# --- without a board --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        OPEN,
        ServingSettings(uid_first=0),
        pytest.param(ServingSettings(), marks=pytest.mark.skipif(not running_as_root(), reason="needs root")),
    ],
    ids=["open", "confined", "another user"],
)
async def test_an_emulation_that_is_asked_for_answers_and_says_so(
    made: Made, build: Build, start: Start, settings: ServingSettings
) -> None:
    async with start(settings=settings) as device:
        worker = await device.load(build(providers=ASKED))
        said = execution(worker)
        assert (said.backend, said.emulated, said.asked) == ("fpga", True, ASKED)
        assert said.why == "the module asks for its emulation"
        assert str(said).startswith(f"fpga: emulation-{MACHINE}.so for pynq-z2, emulated")
        assert (await device.ask(worker, made.x[:20]) == made.emulated(made.x[:20])).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_what_is_no_number_is_the_callers_fault_and_harms_nobody(
    made: Made, build: Build, start: Start, value: float
) -> None:
    async with start() as device:
        worker = await device.load(build(providers=ASKED))
        await device.runtime.serve(worker)
        rows = np.full((2, 64), value, np.float32)
        head = {
            "inputs": [{"name": "X", "datatype": "FP32", "shape": [2, 64], "parameters": {"binary_data_size": 512}}]
        }
        status, body = await posted(device.runtime.address("digits"), "digits", head, rows.tobytes())
        assert (status, "expected finite numbers" in body) == (400, True)
        assert (await device.ask(worker, made.x[:3]) == made.emulated(made.x[:3])).all()


async def test_without_a_board_nothing_is_emulated_that_nobody_asked_for(
    tmp_path: Path, build: Build, start: Start
) -> None:
    async with start(no_board(tmp_path)) as device:
        with pytest.raises(WorkerError, match="neither asked for by the module nor allowed by this device") as caught:
            await device.load(build())
    assert caught.value.key == "load-failed"
    assert "no FPGA on this device" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [({"providers": ("board", EMULATION)}, False), ({"fallback": True}, False), ({}, True)],
    ids=["second provider", "fallback", "by the device"],
)
async def test_an_emulation_in_the_boards_place_says_why(
    tmp_path: Path, build: Build, start: Start, changes: dict[str, Any], allowed: bool
) -> None:
    settings = msgspec.structs.replace(OPEN, fpga_emulation=allowed)
    async with start(no_board(tmp_path), settings) as device:
        said = execution(await device.load(build(**changes)))
    assert said.emulated
    assert "no FPGA on this device" in said.why


async def test_a_golden_answer_that_is_off_by_one_bit_is_found(made: Made, build: Build, start: Start) -> None:
    answers = made.emulated(made.x[:6])
    answers[5, 9] += np.float32(2**-10)
    async with start() as device:
        with pytest.raises(WorkerError, match=r"output probabilities: expected .* at element 59") as caught:
            await device.load(build(providers=ASKED, golden=golden_of(made.overlay, made.x[:6], answers)))
    assert caught.value.key == "golden-mismatch"


def _other_machine(data: bytes) -> bytes:
    return data[:18] + (183 if MACHINE != "aarch64" else 62).to_bytes(2, "little") + data[20:]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda data: data[: len(data) // 2], "it is damaged"),
        (lambda data: b"\x7fELF" + data[4:80], "its head is damaged|it is damaged"),
        (lambda data: b"", "expected a shared library, got something else"),
        (_other_machine, f"expected a library for {MACHINE}, got one for"),
        (lambda data: data.replace(b"mooring_overlay_abi", b"mooring_overlay_abc"), "undefined symbol"),
    ],
    ids=["cut", "head alone", "empty", "another machine", "another library"],
)
async def test_a_library_that_is_damaged_or_anothers_is_refused_in_words(
    made: Made, build: Build, start: Start, spoil: Callable[[bytes], bytes], words: str
) -> None:
    spoilt = {made.library.name: spoil(made.library.read_bytes())}
    async with start() as device:
        with pytest.raises(WorkerError, match=words) as caught:
            await device.load(build(spoilt, providers=ASKED))
    assert caught.value.key == "load-failed"


async def test_a_library_of_other_tensors_is_refused(made: Made, build: Build, start: Start) -> None:
    port = msgspec.structs.replace(made.overlay.input, shape=(-1, 32))
    async with start() as device:
        with pytest.raises(WorkerError, match=r"expected interface 1 with 32 elements in and 10 out, got \(1, 64, 10"):
            await device.load(build(providers=ASKED, overlay={"input": port}))


async def test_a_module_without_an_emulation_for_this_machine_says_which_it_has(build: Build, start: Start) -> None:
    async with start() as device:
        with pytest.raises(WorkerError, match=f"expected a library for {MACHINE}, the module has none"):
            await device.load(build(providers=ASKED, overlay={"emulation": {}}))


async def test_a_description_that_is_not_the_manifests_is_refused(made: Made, build: Build, start: Start) -> None:
    built = build(providers=ASKED)
    inputs = (msgspec.structs.replace(made.overlay.input.spec, name="other"),)
    manifest = msgspec.structs.replace(built.manifest, inputs=inputs)
    async with start() as device:
        with pytest.raises(WorkerError, match=r"the overlay has X FP32 .*, the manifest says other FP32"):
            await device.load(Built(manifest, encode_manifest(manifest), built.files))
        with pytest.raises(WorkerError, match=r"expected paths inside the module, got '\.\./\.\./etc/passwd'"):
            await device.load(_with_text(built, b'"pynq-z2"', b'"pynq-z2","hardware":"../../etc/passwd"'))
        with pytest.raises(WorkerError, match=r"absent\.hwh is named but is not among the module's files"):
            await device.load(_with_text(built, b'"pynq-z2"', b'"pynq-z2","hardware":"absent.hwh"'))


def _with_text(built: Built, old: bytes, new: bytes) -> Built:
    files = {**built.files, "overlay.json": built.files["overlay.json"].replace(old, new)}
    entries = tuple(entry(path, data) for path, data in sorted(files.items()))
    manifest = msgspec.structs.replace(built.manifest, files=entries)
    return Built(manifest, encode_manifest(manifest), files)


def test_only_a_module_of_the_fpga_may_bring_circuits_and_emulations(build: Build) -> None:
    built = build(bitstream=BITSTREAM, device_tree=b"tree")
    check_formats(built.manifest)
    plain = msgspec.structs.replace(built.manifest, runtime=Runtime(backend="acme.npu", model="overlay.json"))
    with pytest.raises(FormatError, match="expected a format that runs no code"):
        check_formats(plain)
    other = build({"libevil.so": b"\x7fELF"})
    with pytest.raises(FormatError, match=r"libevil\.so: expected a format that runs no code"):
        check_formats(other.manifest)


# --- with a board -----------------------------------------------------------------------------------------------------


async def test_a_board_is_programmed_with_the_signed_bitstream_and_answers_bit_for_bit(
    made: Made, build: Build, start: Start, board: Callable[..., Board]
) -> None:
    with board() as machine:
        async with start(machine.root) as device:
            worker = await device.load(build(bitstream=BITSTREAM, device_tree=b"a device tree"))
            said = execution(worker)
            assert (said.emulated, said.note, said.why) == (False, "AXI DMA by UIO on pynq-z2", "")
            rows = made.x[:500]  # more than fit into one transfer
            assert (await device.ask(worker, rows) == made.emulated(rows)).all()
    assert machine.programmed == [BITSTREAM]
    assert [line.split()[0] for line in machine.told] == ["flags", "firmware", "dtbo"]
    assert machine.told[0] == "flags 0"
    assert list((machine.root / "lib/firmware").iterdir()) == []


@pytest.mark.skipif(not running_as_root(), reason="needs root")
@pytest.mark.parametrize("preload", ["auto", "off"])
async def test_a_confined_worker_reaches_the_board_through_what_it_inherits(
    made: Made, build: Build, start: Start, board: Callable[..., Board], preload: Any
) -> None:
    with board() as machine:
        async with start(machine.root, ServingSettings(preload=preload)) as device:
            worker = await device.load(build(bitstream=BITSTREAM))
            assert worker.ready is not None
            assert "seccomp" in worker.ready.confinement
            assert not execution(worker).emulated
            assert (await device.ask(worker, made.x[:9]) == made.emulated(made.x[:9])).all()


async def test_the_same_circuit_is_not_programmed_twice_and_another_not_under_a_running_worker(
    build: Build, start: Start, board: Callable[..., Board]
) -> None:
    with board() as machine:
        async with start(machine.root) as device:
            first = await device.load(build(bitstream=BITSTREAM))
            second = await device.load(build(bitstream=BITSTREAM, version=2))
            assert machine.programmed == [BITSTREAM]
            with pytest.raises(
                WorkerError, match="the FPGA holds the circuit of digits, which runs; it has room for one"
            ):
                await device.load(build(bitstream=BITSTREAM + b"another", version=3))
            for worker in (first, second):
                await worker.kill()
            await device.load(build(bitstream=BITSTREAM + b"another", version=3))
    assert machine.programmed == [BITSTREAM, BITSTREAM + b"another"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("write init error", "expected the state 'operating' after the bitstream, got 'write init error'"),
        ("write complete error", "got 'write complete error'"),
        ("silent", "waited in vain for the state 'operating' after the bitstream"),
    ],
)
async def test_a_board_that_cannot_be_programmed_is_no_board(
    build: Build, start: Start, board: Callable[..., Board], fault: str, words: str
) -> None:
    with board(fault=fault) as machine:
        async with start(machine.root, deadline_s=1.0) as device:
            with pytest.raises(WorkerError, match=words) as caught:
                await device.load(build(bitstream=BITSTREAM))
            assert caught.value.key == "load-failed"
            assert words in execution(await device.load(build(bitstream=BITSTREAM, providers=("board", EMULATION)))).why
    assert list((machine.root / "lib/firmware").iterdir()) == []


async def test_a_bitstream_that_changed_on_the_disk_never_reaches_the_kernel(
    build: Build, start: Start, board: Callable[..., Board]
) -> None:
    built = build(bitstream=BITSTREAM)
    with board() as machine:
        async with start(machine.root) as device:
            await (await device.load(built)).kill()
            path = device.slots.open(built.sha256).path / "overlay.bit.bin"
            path.chmod(0o644)
            path.write_bytes(BITSTREAM[:-1] + b"!")
            async with Fabric(root=machine.root).lend(built.manifest, path.parent) as circuit:
                why = circuit.why
    assert why == "overlay.bit.bin is not what was signed; the FPGA stays as it is"
    assert machine.programmed == [BITSTREAM]


async def test_an_old_device_tree_that_stays_keeps_the_new_circuit_out(
    build: Build, start: Start, board: Callable[..., Board]
) -> None:
    with board() as machine:
        overlays = machine.root / "sys/kernel/config/device-tree/overlays/mooring"
        overlays.mkdir()  # to which the kernel adds its files, so that here it cannot be removed
        await until((overlays / "dtbo").exists, "the kernel's own file")
        async with start(machine.root) as device:
            with pytest.raises(WorkerError, match="the old overlay stays"):
                await device.load(build(bitstream=BITSTREAM))
    assert machine.programmed == []


async def test_a_module_without_a_bitstream_does_not_touch_the_board(
    build: Build, start: Start, board: Callable[..., Board]
) -> None:
    with board() as machine:
        async with start(machine.root) as device:
            with pytest.raises(WorkerError, match="the module brings no bitstream"):
                await device.load(build())
    assert (machine.programmed, machine.told) == ([], [])


async def test_a_transfer_that_fails_is_an_error_with_the_status(
    build: Build, start: Start, board: Callable[..., Board]
) -> None:
    with board(fault="slave") as machine:
        async with start(machine.root) as device:
            with pytest.raises(WorkerError, match="DMA to the circuit: error, status 0x22") as caught:
                await device.load(build(bitstream=BITSTREAM))
    assert caught.value.key == "golden-failed"


async def test_a_board_without_its_devices_says_which_are_missing(
    build: Build, start: Start, board: Callable[..., Board]
) -> None:
    with board(devices=False) as machine:
        async with start(machine.root) as device:
            words = "expected a device named 'mooring-dma', got none; nor is PYNQ installed"
            with pytest.raises(WorkerError, match=words):
                await device.load(build(bitstream=BITSTREAM))


PYNQ = '''
"""What a board with PYNQ has, played: rows go through the emulation beside the bitstream."""
import ctypes, pathlib, platform
import numpy as np

class Buffer(np.ndarray):
    def flush(self): pass
    def invalidate(self): pass
    def freebuffer(self): pass

def allocate(shape, dtype):
    return np.zeros(shape, dtype).view(Buffer)

class Channel:
    idle = True
    def __init__(self, dma): self._dma = dma
    def transfer(self, buffer, nbytes=0): self._dma.take(self, buffer, nbytes)

class Dma:
    def __init__(self, folder):
        self.sendchannel, self.recvchannel = Channel(self), Channel(self)
        self.library = ctypes.CDLL(str(folder / f"emulation-{platform.machine()}.so"))
        self.answered = None
    def take(self, channel, buffer, nbytes):
        if channel is self.recvchannel:
            self.answered = buffer
            return
        rows = nbytes // 4 // self.library.mooring_overlay_input()
        run = self.library.mooring_overlay_run
        run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        run(buffer.ctypes.data, self.answered.ctypes.data, rows)

class Overlay:
    def __init__(self, path, download):
        assert not download and pathlib.Path(path).with_suffix(".hwh").exists()
        self.hier_0 = type("hierarchy", (), {"axi_dma_0": Dma(pathlib.Path(path).parent)})
'''


async def test_where_pynq_is_installed_its_driver_moves_the_rows(
    made: Made, build: Build, start: Start, board: Callable[..., Board], tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/pynq.py").write_text(PYNQ)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "packages"), *sys.path[:1]]))
    with board(devices=False) as machine:
        async with start(machine.root) as device:
            worker = await device.load(build(bitstream=BITSTREAM))
            assert execution(worker).note == "AXI DMA by PYNQ on pynq-z2"
            assert (await device.ask(worker, made.x[:30]) == made.emulated(made.x[:30])).all()
    assert machine.programmed == [BITSTREAM]
