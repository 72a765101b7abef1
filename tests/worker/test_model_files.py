"""Which files a module may bring, and what an ONNX file may say: rows 39 to 41 and 44, before the runtime sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from agent.backends.onnx_files import MAX_NUMBER, External, check_contained, external_files
from agent.formats import FormatError, check_formats
from modules.manifest import Manifest, Runtime
from modules.tensors import TensorSpec
from worker.driver import WorkerDriver, write_module

X = (TensorSpec("x", "FP32", (-1, 2)),)
SCRIPT = Runtime(backend="script", model="", entry="entry.py")


def onnx_with(**entries: str) -> bytes:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weights.external_data.add(key=key, value=value)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [output], [weights])
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    "path",
    ["a.pkl", "a.PICKLE", "a.pt", "a.pth", "a.joblib", "a.h5", "a.keras", "a.engine", "a.plan", "a.so", "a.so.1",
     "a.zip", "a.tar.gz", "a.sh", "a.exe", "a.dll", "a.ort", "a.pyc", "sub/a.bin.pkl", "a.py"],
)  # fmt: skip
def test_a_file_of_a_format_that_is_not_allowed_is_refused(tmp_path: Path, path: str) -> None:
    """Row 44: also a Python file beside an ONNX model, which no entry script asks for."""
    manifest = write_module(tmp_path / "slot", {"model.onnx": b"m", path: b"x"}, inputs=X, outputs=X)
    with pytest.raises(FormatError, match="runs no code"):
        check_formats(manifest)


@pytest.mark.parametrize(
    ("runtime", "files"),
    [
        (Runtime(model="model.pkl"), {"model.pkl": b""}),
        (Runtime(model="model.bin"), {"model.bin": b""}),
        (Runtime(model="model"), {"model": b""}),
        (Runtime(backend="script", model="model.onnx", entry=""), {"model.onnx": b""}),
        (Runtime(entry="entry.sh"), {"model.onnx": b"", "entry.sh": b""}),
        (Runtime(entry="entry"), {"model.onnx": b"", "entry": b""}),
    ],
)
def test_a_model_or_entry_that_is_named_as_something_else_is_refused(
    tmp_path: Path, runtime: Runtime, files: dict[str, bytes]
) -> None:
    manifest = write_module(tmp_path / "slot", files, inputs=X, outputs=X, runtime=runtime)
    with pytest.raises(FormatError, match="expected a"):
        check_formats(manifest)


def test_data_of_many_kinds_may_stand_beside_a_model(tmp_path: Path) -> None:
    names = ("m.onnx.data", "m.onnx_data", "weights.bin", "labels.txt", "v.safetensors", "vocab", "m.json", "a/b.npy")
    files = {"entry.py": b"", "more.py": b"", **dict.fromkeys(names, b"")}
    check_formats(write_module(tmp_path / "slot", files, inputs=X, outputs=X, runtime=SCRIPT))


async def test_the_worker_refuses_a_format_too(tmp_path: Path) -> None:
    manifest = write_module(tmp_path / "slot", {"model.onnx": b"m", "a.pkl": b"x"}, inputs=X, outputs=X)
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        assert (await worker.start_broken()).key == "format-refused"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x04\x95\x10\x00\x00\x00", "wire type|ends|broken|without a version"),
        (b"PK\x03\x04" + bytes(40), "wire type|ends|broken|without a version"),
        (b"\x7fELF" + bytes(60), "wire type|ends|broken|without a version"),
        (b"\x1c\0\0\0ORTM" + bytes(40), "ONNX Runtime's own format"),
        (b"\x08\x08", "without a version or a graph"),
        (b"", "empty"),
    ],
    ids=["pickle", "zip", "elf", "ort", "no-graph", "empty"],
)
def test_what_is_no_onnx_is_known_by_its_first_bytes(model: Path, data: bytes, words: str) -> None:
    """Row 44: a name says little."""
    model.write_bytes(data)
    with pytest.raises(ValueError, match=words):
        external_files(model)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "w", "__class__": "x"}, "got '__class__'"),
        ({"location": "w", "basepath": "/"}, "got 'basepath'"),
        ({"location": "w", "offset": "-1"}, "offset as a whole number"),
        ({"location": "w", "length": "-1"}, "length as a whole number"),
        ({"location": "w", "offset": "1e3"}, "offset as a whole number"),
        ({"location": "w", "offset": "0x10"}, "offset as a whole number"),
        ({"location": "w", "offset": "\u0661"}, "offset as a whole number"),
        ({"location": "w", "offset": str(MAX_NUMBER + 1)}, "offset as a whole number"),
        ({"location": "w", "length": "9" * 30}, "length as a whole number"),
        ({"location": "w", "length": ""}, "length as a whole number"),
    ],
)
def test_external_data_described_in_other_words_is_refused(model: Path, entries: dict[str, str], words: str) -> None:
    """Row 41."""
    model.write_bytes(onnx_with(**entries))
    with pytest.raises(ValueError, match=words):
        external_files(model)


def test_external_data_lies_within_its_file(model: Path, tmp_path: Path) -> None:
    """Rows 39 and 41: a plain file that is there, and numbers that fit."""
    data = tmp_path / "w"
    data.write_bytes(bytes(16))
    check_contained(External("w", 8, 8), data)
    for named in (External("w", 8, 9), External("w", 17), External("w", MAX_NUMBER, MAX_NUMBER)):
        with pytest.raises(ValueError, match="expected to end at 16 or before"):
            check_contained(named, data)
    (tmp_path / "link").symlink_to(data)
    for name in ("link", "missing"):
        with pytest.raises(OSError, match=name):
            check_contained(External(name), tmp_path / name)


async def test_external_data_that_is_missing_is_a_model_that_does_not_load(tmp_path: Path) -> None:
    """Row 39: named and signed, and gone from the disk."""
    files = {"model.onnx": onnx_with(location="w.bin"), "w.bin": bytes(16)}
    manifest: Manifest = write_module(tmp_path / "slot", files, inputs=X, outputs=X)
    (tmp_path / "slot" / "w.bin").unlink()
    async with WorkerDriver(tmp_path / "slot", manifest) as worker:
        broken = await worker.start_broken()
        assert (broken.key, "w.bin" in broken.text) == ("load-failed", True)
