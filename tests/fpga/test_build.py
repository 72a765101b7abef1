"""From a model to an overlay: what is made, what is refused with which words, and tools that fail or are missing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud_hub.errors import Unprocessable
from cloud_hub.fpga.bitstream import part_of, raw
from cloud_hub.fpga.device_tree import registers_of, source
from cloud_hub.fpga.host import LOG_NAME, build_overlay
from cloud_hub.fpga.onnx_form import prepare
from cloud_hub.fpga.request import FpgaBuilt, FpgaError, FpgaRequest
from fpga.conftest import MACHINE, Made
from modules.overlay import Overlay, Stream, decode_overlay
from support.fpga_tools import HARDWARE, Tools, bit_file
from support.waiting import until

DEADLINE_S = 120.0
pytestmark = pytest.mark.timeout(300)  # the first test of a run waits for the compiler
X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])


def request(folder: Path, model: Path, **changes: Any) -> FpgaRequest:
    said: dict[str, Any] = {"machines": (MACHINE,), "synthesise": False, **changes}
    return FpgaRequest(str(model), str(folder / "out"), str(folder / "work"), **said)


async def build(asked: FpgaRequest, steps: list[str] | None = None) -> tuple[FpgaBuilt, Overlay]:
    built = await build_overlay(asked, (steps if steps is not None else []).append, DEADLINE_S)
    return built, decode_overlay((Path(asked.folder) / "overlay.json").read_bytes())


async def refused(asked: FpgaRequest, deadline_s: float = DEADLINE_S) -> Unprocessable:
    with pytest.raises(Unprocessable) as caught:
        await build_overlay(asked, lambda _: None, deadline_s)
    assert not (Path(asked.folder) / "overlay.json").exists()
    return caught.value


def written(folder: Path, *nodes: onnx.NodeProto, outputs: int = 4, **weights: Any) -> Path:
    constants = [numpy_helper.from_array(np.array(values, np.float32), name) for name, values in weights.items()]
    answered = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", outputs])
    return saved(folder, helper.make_graph(nodes, "g", [X], [answered], constants))


def saved(folder: Path, graph: onnx.GraphProto) -> Path:
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder / "model.onnx"


def test_a_network_becomes_a_folder_that_says_what_it_is(made: Made) -> None:
    assert made.built.files == ("emulation-x86_64.so", "overlay.json") or MACHINE != "x86_64"
    overlay = made.overlay
    assert (overlay.input.name, overlay.input.shape) == ("X", (-1, 64))
    assert (overlay.output.name, overlay.output.shape) == ("probabilities", (-1, 10))
    assert overlay.input.type == "fixed<16,6,TRN,WRAP,0>"
    assert (overlay.board, overlay.part, overlay.bitstream) == ("pynq-z2", "xc7z020clg400-1", "")
    assert overlay.tools["hls4ml"]
    assert made.built.notes == ("no bitstream: not asked for",)
    assert made.steps == (
        "writing the HLS project for pynq-z2", f"compiling the emulation for {MACHINE}", "asking the emulation",
    )  # fmt: skip


def test_the_emulation_answers_as_the_model_does_but_in_fixed_point(made: Made) -> None:
    assert made.built.rows == len(made.x)
    assert made.built.agreement > 0.95
    recorded = np.load(made.answers)
    assert (recorded["X"] == made.x).all()
    assert (recorded["probabilities"].argmax(1) == made.labels).mean() > 0.9
    steps = recorded["probabilities"] * 2**10
    assert (steps == np.round(steps)).all()  # of 16 bits, 6 are before the point


def test_a_row_is_answered_the_same_alone_and_among_others(made: Made) -> None:
    together = made.emulated(made.x[:64])
    assert (together == np.concatenate([made.emulated(made.x[i : i + 1]) for i in range(64)])).all()
    assert (together == np.load(made.answers)["probabilities"][:64]).all()


async def test_the_same_model_makes_the_same_sources_and_another_precision_makes_others(
    made: Made, tools: Tools, tmp_path: Path
) -> None:
    tools.compiler("g++", made.library)
    _, again = await build(request(tmp_path / "a", made.model))
    assert again.source_sha256 == made.overlay.source_sha256
    _, other = await build(request(tmp_path / "b", made.model, precision="ap_fixed<12,4>"))
    assert other.source_sha256 != made.overlay.source_sha256
    assert other.input.type == "fixed<12,4,TRN,WRAP,0>"


async def test_other_machines_get_an_emulation_where_their_compiler_is(
    made: Made, tools: Tools, tmp_path: Path
) -> None:
    tools.compiler("g++", made.library)
    tools.compiler("aarch64-linux-gnu-g++", made.library)
    built, overlay = await build(request(tmp_path, made.model, machines=("aarch64", "armv7l", "pdp11")))
    assert sorted(overlay.emulation) == sorted({MACHINE, "aarch64"})
    assert "no emulation for armv7l: arm-linux-gnueabihf-g++ is not on PATH" in built.notes
    assert "no emulation for pdp11: a compiler for pdp11 is not on PATH" in built.notes


async def test_a_general_product_becomes_a_product_and_a_sum(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.compiler("g++", made.library)
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    model = written(tmp_path, gemm, w=np.eye(4), b=np.ones(4))
    _, overlay = await build(request(tmp_path, model))
    assert (overlay.input.shape, overlay.output.shape) == ((-1, 4), (-1, 4))
    assert "model" not in (tmp_path / "work/project/firmware/overlay.cpp").read_text()


@pytest.mark.parametrize("bias", [[1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]], [0.5]], ids=["row", "table", "one for all"])
@pytest.mark.parametrize("turned", [0, 1])
def test_a_prepared_model_answers_as_it_did_before(tmp_path: Path, bias: Any, turned: int) -> None:
    weight = np.random.default_rng(0).normal(size=(3, 4) if turned else (4, 3))
    nodes = (
        helper.make_node("Identity", ["x"], ["same"]),
        helper.make_node("Gemm", ["same", "w", "b"], ["h"], transB=turned, alpha=0.5, beta=2.0),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Add", ["r", "c"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    )
    path = written(tmp_path, *nodes, outputs=3, w=weight, b=bias, c=np.ones((1, 3)))
    prepared = prepare(path, "", ("MatMul", "Add", "Relu"))
    assert [node.op_type for node in prepared.model.graph.node] == ["MatMul", "Add", "Relu", "Add"]
    assert (prepared.input_name, prepared.output_name, prepared.output_shape) == ("x", "y", (-1, 3))
    rows = np.random.default_rng(1).normal(size=(1, 4)).astype(np.float32)
    (expected,) = ort.InferenceSession(path).run(None, {"x": rows})
    (got,) = ort.InferenceSession(prepared.model.SerializeToString()).run(None, {"x": rows})
    np.testing.assert_allclose(got, expected, rtol=1e-5)


async def test_names_of_a_model_never_reach_the_generated_sources(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.compiler("g++", made.library)
    evil = 'x); system("touch /tmp/owned"); ('
    nodes = helper.make_node("MatMul", ["x", evil], ["y"], name=evil)
    weights: dict[str, Any] = {evil: np.eye(4)}
    await build(request(tmp_path, written(tmp_path, nodes, **weights)))
    texts = [path.read_text(errors="replace") for path in (tmp_path / "work/project").glob("**/*.*") if path.is_file()]
    assert texts
    assert not any("owned" in text for text in texts)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (helper.make_node("Sin", ["x"], ["y"], name="wave"), "Sin (node 'wave'): hls4ml makes no circuit of this"),
        (helper.make_node("Cos", ["x"], ["y"]), "Cos (node 'y'): hls4ml makes no circuit of this"),
        (helper.make_node("Conv", ["x", "w"], ["y"], name="c1"), "Conv (node 'c1'): hls4ml reads convolutions"),
    ],
)
async def test_a_layer_that_no_circuit_can_be_made_of_is_named(
    node: onnx.NodeProto, words: str, tmp_path: Path
) -> None:
    shape: list[str | int | None] = ["N", 1, 4, 4]
    edges = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")
    error = await refused(
        request(tmp_path, saved(tmp_path, helper.make_graph([node], "g", edges[:1], edges[1:], [weight])))
    )
    assert error.key == "fpga-unsupported"
    assert error.message.startswith(words)


async def test_a_model_of_two_inputs_is_refused_with_their_names(tmp_path: Path) -> None:
    other = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph([helper.make_node("Add", ["x", "z"], ["y"])], "g", [X, other], [Y])
    error = await refused(request(tmp_path, saved(tmp_path, graph)))
    assert error.message.startswith("expected one input, got x, z")


async def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    assert (await refused(request(tmp_path, tmp_path / "junk.onnx"))).key == "fpga-model"
    error = await refused(request(tmp_path, tmp_path / "absent.onnx"))
    assert "no such file" in error.message
    (tmp_path / "model.pkl").write_bytes(b"")
    assert "expected a model as one of .onnx" in (await refused(request(tmp_path, tmp_path / "model.pkl"))).message


async def test_a_framework_that_is_not_installed_is_named_with_the_way_out(tmp_path: Path) -> None:
    for name, module in (("model.keras", "keras"), ("model.pt", "torch")):
        if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0:
            continue
        (tmp_path / name).write_bytes(b"")
        error = await refused(request(tmp_path, tmp_path / name))
        assert error.key == "fpga-tool"
        assert f"{module} is not installed here" in error.message
        assert "ONNX" in error.message


async def test_an_output_is_chosen_by_name_and_a_wrong_name_lists_them(tmp_path: Path, made: Made) -> None:
    error = await refused(request(tmp_path, made.model, output="score"))
    assert error.message == "expected an output named score, the model has label, probabilities"


@pytest.mark.parametrize(
    ("field", "value"),
    [("board", "breadboard"), ("precision", "float"), ("precision", 'ap_fixed<16,6> x; system("")'), ("reuse", 0),
     ("clock_ns", 0.0)],
)  # fmt: skip
async def test_a_wish_outside_its_bounds_starts_nothing(tmp_path: Path, made: Made, field: str, value: object) -> None:
    error = await refused(msgspec.structs.replace(request(tmp_path, made.model), **{field: value}))
    assert (error.key, error.message.partition(":")[0]) == ("fpga-request", field)
    assert not (tmp_path / "work").exists()


async def test_data_that_do_not_fit_the_model_are_refused(tmp_path: Path, made: Made, tools: Tools) -> None:
    tools.compiler("g++", made.library)
    np.savez(tmp_path / "data.npz", X=np.zeros((3, 5), np.float32))
    asked = request(tmp_path, made.model, data=str(tmp_path / "data.npz"), answers=str(tmp_path / "answers.npz"))
    error = await refused(asked)
    assert error.key == "fpga-data"
    assert "expected shape [-1, 64], got [3, 5]" in error.message


# --- tools ------------------------------------------------------------------------------------------------------------


async def test_the_vendors_tools_make_a_bitstream_where_they_are_on_path(
    made: Made, tools: Tools, tmp_path: Path
) -> None:
    tools.compiler("g++", made.library)
    tools.vendor(bit_file())
    steps: list[str] = []
    built, overlay = await build(request(tmp_path, made.model, synthesise=True), steps)
    assert {"overlay.bit", "overlay.bit.bin", "overlay.hwh", "resources.txt"} < set(built.files)
    assert (overlay.bitstream, overlay.raw_bitstream, overlay.hardware) == (
        "overlay.bit", "overlay.bit.bin", "overlay.hwh",
    )  # fmt: skip
    assert (tmp_path / "out/overlay.bit.bin").read_bytes().startswith(bytes.fromhex("ffffffff 665599aa"))
    assert overlay.tools["vivado"] == "Vivado v2020.1 (64-bit)"
    assert [call.split()[0] for call in tools.calls] == ["vivado_hls", "vivado"]
    assert [step.partition(" with ")[0] for step in steps[-2:]] == ["high-level synthesis", "placing and routing"]


async def test_a_kv260_gets_its_own_part_in_the_block_design(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.compiler("g++", made.library)
    await build(request(tmp_path, made.model, board="kria-kv260"))
    design = (tmp_path / "work/project/design.tcl").read_text()
    assert "xck26-sfvc784-2LV-c" in design
    assert "zcu102" not in design


async def test_the_device_tree_names_the_dma_at_its_address_in_the_block_design(
    made: Made, tools: Tools, tmp_path: Path
) -> None:
    tools.compiler("g++", made.library)
    tools.vendor(bit_file())
    tools.program("dtc", 'while [ $# -gt 2 ]; do shift; done; cp "$2" "$1"')  # whose output is its input
    built, overlay = await build(request(tmp_path, made.model, synthesise=True))
    assert overlay.device_tree == "overlay.dtbo"
    tree = (tmp_path / "out/overlay.dtbo").read_text()
    assert "reg = <0x40400000 0x10000>;" in tree
    assert 'linux,uio-name = "mooring-dma"' in tree
    assert "no device tree" not in " ".join(built.notes)


def test_a_block_design_without_the_dma_is_refused_and_wide_addresses_take_two_cells() -> None:
    with pytest.raises(FpgaError, match="no registers of hier_0_axi_dma_0"):
        registers_of("<EDKSYSTEM/>", Stream())
    assert registers_of(HARDWARE, Stream()) == (0x4040_0000, 0x1_0000)
    assert "reg = <0x1 0x2 0x0 0x10000>;" in source(0x1_0000_0002, 0x1_0000, Stream(), wide=True)


@pytest.mark.parametrize(
    ("bitstream", "words"),
    [
        (bit_file(part="7z010clg400"), "expected a bitstream for xc7z020clg400-1, got one for 7z010clg400"),
        (bit_file()[:-2], "it is damaged"),
        (b"text", "expected a .bit file"),
        (bit_file(words=(1, 2, 3)), "no sync word|a sync word"),
    ],
)
async def test_a_bitstream_that_is_none_or_for_another_part_is_refused(
    made: Made, tools: Tools, tmp_path: Path, bitstream: bytes, words: str
) -> None:
    tools.compiler("g++", made.library)
    tools.vendor(bitstream)
    error = await refused(request(tmp_path, made.model, synthesise=True))
    assert error.key == "fpga-tool"
    assert any(word in error.message for word in words.split("|")), error.message


async def test_a_vendors_tool_that_fails_is_quoted(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.compiler("g++", made.library)
    tools.vendor(bit_file())
    tools.program("vivado_hls", 'echo "INFO: begin"; echo "ERROR: [HLS 200-70] no licence"; echo done; exit 3')
    error = await refused(request(tmp_path, made.model, synthesise=True))
    assert error.message == "vivado_hls ended with 3: ERROR: [HLS 200-70] no licence"


async def test_a_vendors_tool_that_hangs_is_ended_with_all_it_has_started(
    made: Made, tools: Tools, tmp_path: Path
) -> None:
    tools.compiler("g++", made.library)
    tools.vendor(bit_file())
    tools.program("vivado_hls", f"sleep 3600 & echo $! > {tmp_path}/pid; wait")
    error = await refused(request(tmp_path, made.model, synthesise=True, synthesis_deadline_s=1.0))
    assert error.message == "vivado_hls was not done after 1 s; it was ended"
    await until(lambda: _gone(_number(tmp_path / "pid")), "the tool's children to end", DEADLINE_S)


async def test_a_compiler_that_hangs_ends_with_the_build(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.program("g++", f"sleep 3600 & echo $! > {tmp_path}/pid; wait")
    building = asyncio.create_task(build_overlay(request(tmp_path, made.model), lambda _: None, DEADLINE_S))
    await until(lambda: _number(tmp_path / "pid") > 0, "the compiler to run", DEADLINE_S)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    await until(lambda: _gone(_number(tmp_path / "pid")), "the compiler's children to end", DEADLINE_S)


async def test_a_build_that_is_not_done_in_time_is_ended(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.program("g++", "sleep 3600")
    error = await refused(request(tmp_path, made.model), deadline_s=0.5)
    assert error.message == "the build was not done after 0.5 s; it was ended"


async def test_a_compiler_that_fails_is_quoted(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.program("g++", 'echo "overlay.cpp:3: error: no such thing" >&2; exit 1')
    error = await refused(request(tmp_path, made.model))
    assert error.message == "g++ ended with 1: overlay.cpp:3: error: no such thing"


async def test_a_build_that_dies_says_what_it_said_last(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.program("g++", "kill -9 $PPID")
    error = await refused(request(tmp_path, made.model))
    assert error.message.startswith("the build's process ended with status -9")
    assert (tmp_path / "work" / LOG_NAME).read_text()


def test_a_raw_bitstream_has_its_words_turned_round() -> None:
    assert raw(bit_file()) == bytes.fromhex("ffffffff 665599aa 00000020")
    assert part_of(bit_file()) == "7z020clg400"


def test_neither_hub_nor_agent_nor_command_loads_hls4ml() -> None:
    program = "import sys, agent.service, cloud_hub.service, cloud_hub.fpga.host, cloud_hub.operator.cli.fpga\n"
    run = subprocess.run(
        [sys.executable, "-c", f"{program}print({{'hls4ml', 'onnx'}} & set(sys.modules))"],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert run.stdout == "set()\n", run.stderr


def test_the_command_builds_and_says_what_is_missing(made: Made, tools: Tools, tmp_path: Path) -> None:
    tools.compiler("g++", made.library)
    command = [str(Path(sys.executable).with_name("mooring")), "fpga", "build", str(made.model), "-o", "json"]
    np.savez(tmp_path / "data.npz", X=made.x[:4])
    more = ["--to", str(tmp_path / "out"), "--data", str(tmp_path / "data.npz"), "--emulate", MACHINE]
    run = subprocess.run([*command, *more], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["rows"] == 4
    assert "no bitstream: vivado_hls and vivado not on PATH" in run.stderr
    assert np.load(tmp_path / "out-answers.npz")["probabilities"].shape == (4, 10)
    again = subprocess.run([*command, *more], capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert again.returncode == 1
    assert "expected an empty folder" in again.stderr


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):  # not yet, or not yet whole
        return 0


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
