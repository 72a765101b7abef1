"""What `mooring module build` makes of a runtime file and of the options beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from cloud_hub.operator.cli.build_base import local_base
from cloud_hub.operator.cli.build_runtime import parse_provider, parse_tensor, read_runtime
from cloud_hub.operator.errors import FileError
from modules.runtime import Provider, Runtime
from modules.steps import Softmax
from modules.tensors import TensorSpec

FILE = """
backend = "onnx"
providers = [{ name = "CUDAExecutionProvider", options = { device_id = "0" } }]

[[stages]]
name = "net"
model = "net.onnx"

[[stages]]
name = "talk"
backend = "script"
inputs = ["middle:FP32:-1,2"]
outputs = [{ name = "y", datatype = "FP32", shape = [-1, 2] }]

[[after]]
type = "softmax"
tensor = "y"

[[sources]]
type = "directory"
path = "/data/in"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "runtime.toml"
    path.write_text(FILE)
    return path


def test_a_file_is_a_runtime_in_which_tensors_may_be_words_or_be_left_out(file: Path) -> None:
    runtime = read_runtime(file, {}).runtime
    assert runtime is not None
    assert runtime.providers == (Provider("CUDAExecutionProvider", {"device_id": "0"}),)
    assert (runtime.stages[0].inputs, runtime.stages[0].outputs) == ((), ())
    assert runtime.stages[1].inputs == (TensorSpec("middle", "FP32", (-1, 2)),)
    assert runtime.stages[1].outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    assert runtime.after == (Softmax("y"),)


def test_options_stand_over_the_file_and_what_is_not_given_does_not(file: Path) -> None:
    wish = (Provider("CPU"),)
    runtime = read_runtime(file, {"providers": wish, "batch_rows": 4, "backend": "", "instances": None}).runtime
    assert runtime is not None
    assert (runtime.providers, runtime.batch_rows, runtime.backend, runtime.instances) == (wish, 4, "onnx", 0)


def test_nothing_said_is_no_runtime_so_that_an_older_hub_understands_the_request() -> None:
    assert read_runtime(None, {"backend": "", "providers": (), "fallback": False, "batch_rows": None}).runtime is None
    assert read_runtime(None, {"backend": "tflite"}).runtime == Runtime(backend="tflite")


def test_a_table_of_the_container_is_no_part_of_the_runtime(tmp_path: Path) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text("[container]\ngpus = 1\ndevices = ['/dev/video0']\n")
    said = read_runtime(path, {})
    assert (said.runtime, said.container) == (None, {"gpus": 1, "devices": ["/dev/video0"]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = ", "Invalid value"),
        ("nonsense = 1", "unknown field `nonsense`"),
        ("stages = 3", "expected"),
        ("stages = ['a']", "stages: expected a table, got str"),
        ("[[stages]]\nname = 'a'\ninputs = ['x:FP99:1']", "NAME:TYPE:SHAPE"),
        ("[[before]]\ntype = 'magic'\ntensor = 'x'", "magic"),
        ("batch_rows = 0", "runtime.batch_rows: expected 1 to 65536"),
        ("container = 1", "container: expected a table"),
        ("x = 1 #" + "x" * 1_100_000, "at most 1048576 bytes"),
    ],
)
def test_a_file_that_means_nothing_is_refused_with_its_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "runtime.toml"
    path.write_text(text)
    with pytest.raises(typer.BadParameter, match=words):
        read_runtime(path, {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"nowhere\.toml"):
        read_runtime(tmp_path / "nowhere.toml", {})


def test_a_provider_has_options_behind_its_name() -> None:
    assert parse_provider("CPU") == Provider("CPU")
    assert parse_provider("CUDA:device_id=1,x=a:b") == Provider("CUDA", {"device_id": "1", "x": "a:b"})
    for text in ("CUDA:nothing", ":a=b", "CUDA:=1"):
        with pytest.raises(typer.BadParameter, match="expected NAME:KEY=VALUE"):
            parse_provider(text)


def test_a_tensor_is_a_name_a_type_and_a_shape() -> None:
    assert parse_tensor("word:BYTES:") == TensorSpec("word", "BYTES", ())
    with pytest.raises(typer.BadParameter, match="NAME:TYPE:SHAPE"):
        parse_tensor("x:FP32:a")


def test_a_base_is_an_archive_or_an_image_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "base.tar"
    archive.write_bytes(b"tar")
    with local_base(str(archive)) as found:
        assert found == archive
    for none in ("", f"registry.local/base@sha256:{'0' * 64}"):
        with local_base(none) as found:
            assert found is None
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with pytest.raises(FileError, match=r"nothing:1: expected a tar archive, or an image"), local_base("nothing:1"):
        pass
