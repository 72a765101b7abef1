"""The tensors of a module and its known answers: golden set and reference profile. Called by `model_module`.

Three ways. A plain ONNX model is loaded by the hub's own probe. Chains, steps and other formats are answered by the
device's code (`device_code`). What runs somebody's code (scripts, circuits, backends of others) is not run here: its
tensors are declared, and its answers stand in the golden file beside their inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from cloud_hub.building.bench import Bench
from cloud_hub.building.chain import Fitted, fitted
from cloud_hub.building.device_code import answered
from cloud_hub.building.request import BuildRequest
from cloud_hub.errors import Unprocessable
from cloud_hub.fpga.module import read_overlay
from cloud_hub.probing.probe import probe
from cloud_hub.probing.request import ProbeRequest, ProbeResult
from modules.bundle import FileEntry
from modules.manifest import Lineage, Manifest, Resources, Runtime
from modules.tensors import TensorSpec

Tensors = tuple[TensorSpec, ...]
COMPUTED = ("onnx", "tflite")  # the backends whose answers can be computed here


async def known_answers(
    request: BuildRequest, runs: Runtime, sources: Mapping[str, Path], bench: Bench
) -> tuple[Runtime, ProbeResult]:
    """The runtime with the tensors of its stages, and what was found. Raises Unprocessable (`golden-missing`,
    `tensors-missing`, `chain-refused`, `model-refused`).
    """
    if not request.reference and not request.golden:
        raise Unprocessable(
            "golden-missing",
            "expected a training sample (reference) or golden inputs: without known answers no device can tell "
            "whether the module works",
        )
    given = await _given(request, bench)
    if _is_plain(runs):
        return runs, await probe(_probe_request(request, given, bench, model=sources[runs.model]))
    if runs.answers_by_script or not _is_computed(runs):
        return await _recorded(request, runs, sources, given, bench)
    fit = await fitted(request, runs, sources, _slot(bench))
    return fit.runtime, await _computed(request, fit, sources, given, bench)


def _is_plain(runs: Runtime) -> bool:
    return (
        runs.backend == "onnx"
        and bool(runs.model)
        and not (runs.answers_by_script or runs.stages or runs.before or runs.after)
    )


def _is_computed(runs: Runtime) -> bool:
    backends = [stage.backend for stage in runs.stages] or [runs.backend]
    named = bool(runs.stages or runs.model)  # else a program of a container's image answers
    return named and all(backend in COMPUTED for backend in backends)


async def _given(request: BuildRequest, bench: Bench) -> dict[str, Path]:
    """What was uploaded of reference and golden arrays. Raises NotFound `blob-not-found`."""
    asked = {"reference": request.reference, "golden": request.golden}
    return {name: await bench.fetch(digest, f"given/{name}.npz") for name, digest in asked.items() if digest}


async def _recorded(
    request: BuildRequest, runs: Runtime, sources: Mapping[str, Path], given: Mapping[str, Path], bench: Bench
) -> tuple[Runtime, ProbeResult]:
    """The answers are in the files. Stages and steps are checked all the same."""
    composed = bool(runs.stages or runs.before or runs.after)
    inputs, outputs = _declared(request, runs, sources)
    if not (inputs and outputs) or (runs.answers_by_script and not request.golden):
        what = f"the backend {runs.backend}" if runs.model else "a program of an image"
        what = "an entry script" if runs.answers_by_script else what
        raise Unprocessable(
            "tensors-missing",
            f"expected `inputs`, `outputs` and golden arrays for both with {what}: the hub runs no scripts and no "
            "circuits, and knows no backends of others",
        )
    if composed:
        runs = (await fitted(request, runs, sources, _slot(bench))).runtime
    return runs, await probe(_probe_request(request, given, bench, inputs, outputs))


def _declared(request: BuildRequest, runs: Runtime, sources: Mapping[str, Path]) -> tuple[Tensors, Tensors]:
    """What the request says, or the description of an overlay."""
    if runs.answers_by_script or runs.backend != "fpga" or runs.stages or runs.before or runs.after:
        return request.inputs, request.outputs
    overlay = read_overlay(runs.model, sources[runs.model], sources)
    given, answers = (
        msgspec.structs.replace(port.spec, labels=tuple(request.labels.get(port.name, ())))
        for port in (overlay.input, overlay.output)
    )
    return (given,), (answers,)


async def _computed(
    request: BuildRequest, fit: Fitted, sources: Mapping[str, Path], given: Mapping[str, Path], bench: Bench
) -> ProbeResult:
    """Answers of the device's code to the arrays that were sent, which then are taken as recorded ones."""
    draft = Manifest(
        name=request.model, version=request.version, profile=request.profile, lineage=Lineage(request.model, 1),
        inputs=fit.inputs, outputs=fit.outputs, runtime=fit.runtime, resources=request.resources or Resources(),
        files=tuple(FileEntry(path, 0, "0" * 64, ()) for path in sources),
    )  # fmt: skip
    made: dict[str, Path] = {}
    for name, arrays in given.items():
        made[name] = bench.folder / f"{name}-answers.npz"
        await answered(draft, _slot(bench), arrays, made[name])
    return await probe(
        ProbeRequest(
            model="",
            inputs=fit.inputs,
            outputs=fit.outputs,
            training=str(made.get("reference", "")),
            golden=str(made.get("golden", "")),
            output_folder=str(bench.folder),
            labels=request.labels,
        )
    )


def _probe_request(
    request: BuildRequest,
    given: Mapping[str, Path],
    bench: Bench,
    inputs: Tensors = (),
    outputs: Tensors = (),
    model: Path | None = None,
) -> ProbeRequest:
    return ProbeRequest(
        model=str(model or ""),
        inputs=inputs,
        outputs=outputs,
        training=str(given.get("reference", "")),
        golden=str(given.get("golden", "")),
        output_folder=str(bench.folder),
        labels=request.labels,
    )


def _slot(bench: Bench) -> Path:
    """Where the model's files lie as they will in the module."""
    return bench.folder / "model"
