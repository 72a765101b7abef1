"""The model as an HLS project, by hls4ml. The only file that imports it; called by the child.

hls4ml prints what it does and takes seconds to import; both stay in the child.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cloud_hub.fpga.boards import Board
from cloud_hub.fpga.request import FpgaError, FpgaRequest
from modules.overlay import Port

PROJECT = "overlay"
BACKEND = "VivadoAccelerator"
_FRAMEWORKS = {".keras": "keras", ".h5": "keras", ".pt": "torch", ".pth": "torch"}


@dataclass(frozen=True)
class Project:
    """An HLS project on the disk. `float_model` answers as the model did before it became a circuit, None where that
    cannot be asked.
    """

    folder: Path
    input: Port
    output: Port
    source_sha256: str
    float_model: Path | None = None

    def tools(self) -> dict[str, str]:
        return {"hls4ml": version("hls4ml")}


def convert(request: FpgaRequest, board: Board) -> Project:
    """Raises FpgaError: fpga-model, fpga-unsupported (names the layer), fpga-tool."""
    path = Path(request.model)
    if not path.is_file():
        raise FpgaError("fpga-model", f"{path}: no such file")
    folder = Path(request.work) / "project"
    if path.suffix.lower() == ".onnx":
        return _from_onnx(request, board, path, folder)
    framework = _FRAMEWORKS.get(path.suffix.lower())
    if framework is None:
        known = ", ".join([".onnx", *_FRAMEWORKS])
        raise FpgaError("fpga-model", f"{path.name}: expected a model as one of {known}")
    return _from_framework(request, board, path, folder, framework)


def _from_onnx(request: FpgaRequest, board: Board, path: Path, folder: Path) -> Project:
    hls4ml = _imported("hls4ml", "mooring[fpga]")
    from cloud_hub.fpga.onnx_form import prepare

    prepared = prepare(path, request.output, hls4ml.converters.get_supported_onnx_layers())
    try:
        graph = hls4ml.converters.convert_from_onnx_model(prepared.model, **_options(request, board, folder))
    except Exception as error:  # hls4ml raises bare Exception, RuntimeError, KeyError and AssertionError
        raise FpgaError("fpga-unsupported", f"{path.name}: hls4ml: {type(error).__name__}: {error}") from error
    types = _written(graph)
    return _project(
        folder, board,
        Port(prepared.input_name, prepared.input_shape, types[0]),
        Port(prepared.output_name, prepared.output_shape, types[1]),
        path,
    )  # fmt: skip


def _from_framework(request: FpgaRequest, board: Board, path: Path, folder: Path, framework: str) -> Project:
    hls4ml, library = _imported("hls4ml", "mooring[fpga]"), _imported(framework, framework)
    options = _options(request, board, folder)
    try:
        if framework == "keras":
            model = library.models.load_model(path, compile=False)
            graph = hls4ml.converters.convert_from_keras_model(model, **options)
        else:
            # The publisher's own file on the publisher's own machine: a pickle, as PyTorch saves whole models.
            model = library.load(path, map_location="cpu", weights_only=False).eval()
            first = next(model.parameters())
            if first.dim() != 2:
                text = "expected a first layer that is dense, because a .pt does not say the input's shape"
                raise FpgaError("fpga-unsupported", f"{path.name}: {text}; export it to ONNX, or bring a Keras model")
            shape = {"InputShape": [[None, int(first.shape[-1])]]}
            graph = hls4ml.converters.convert_from_pytorch_model(
                model, **{**options, "hls_config": {**options["hls_config"], **shape}}
            )
    except FpgaError:
        raise
    except Exception as error:
        raise FpgaError("fpga-unsupported", f"{path.name}: {type(error).__name__}: {error}"[:1000]) from error
    types = _written(graph)
    ports = [
        Port(name, (-1, *map(int, variables[0].shape)), type_)
        for name, variables, type_ in zip(
            ("input", "output"), (graph.get_input_variables(), graph.get_output_variables()), types, strict=True
        )
    ]
    return _project(folder, board, ports[0], ports[1], None)


def _imported(name: str, package: str) -> Any:  # noqa: ANN401 - none of them ships types
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        text = f"{name} is not installed here; install {package}, or bring the model as ONNX"
        raise FpgaError("fpga-tool", f"{text} ({error})") from error


def _options(request: FpgaRequest, board: Board, folder: Path) -> dict[str, Any]:
    # For the whole model at once: by layer, hls4ml 1.3 makes the constants of ONNX graphs wrong.
    whole = {"Precision": request.precision, "ReuseFactor": request.reuse, "Strategy": _strategy(request)}
    return {
        "output_dir": str(folder),
        "project_name": PROJECT,
        "backend": BACKEND,
        "board": board.design,
        "clock_period": request.clock_ns,
        "io_type": "io_parallel",
        "interface": "axi_stream",
        "hls_config": {"Model": whole},
    }


def _strategy(request: FpgaRequest) -> str:
    return "Latency" if request.reuse == 1 else "Resource"


def _written(graph: Any) -> tuple[str, str]:  # noqa: ANN401 - hls4ml's
    """Writes the project; the fixed-point types at its edges."""
    # Else the emulation reads its weights from the folder of the build, at its first use.
    graph.config.writer_config["WriteWeightsTxt"] = False
    inputs, outputs = graph.get_input_variables(), graph.get_output_variables()
    if len(inputs) != 1 or len(outputs) != 1:
        text = f"expected one input and one output, got {len(inputs)} and {len(outputs)}"
        raise FpgaError("fpga-unsupported", f"{text}: hls4ml's stream carries one tensor each way")
    graph.write()
    return str(inputs[0].type.precision), str(outputs[0].type.precision)


def _project(folder: Path, board: Board, given: Port, answered: Port, float_model: Path | None) -> Project:
    for script in sorted(folder.glob("*.tcl")):
        text = script.read_text()
        for old, new in board.replaced.items():
            text = text.replace(old, new)
        script.write_text(text)
    return Project(folder, given, answered, _digest(folder), float_model)


def _digest(folder: Path) -> str:
    """Of everything that the circuit is made from: sources, weights, scripts; not of what hls4ml brings unchanged."""
    brought = {"ap_types", "nnet_utils"}
    said = hashlib.sha256()
    for path in sorted((folder / "firmware").rglob("*")) + sorted(folder.glob("*.tcl")):
        if path.is_file() and not brought & set(path.relative_to(folder).parts):
            said.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return said.hexdigest()
