"""`mooring module build`: uploads what the build needs, and asks for one module per profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from cloud_hub.operator.cli.session import Format, ModelRef, Output, act, note, parse_pairs, show, transferring
from modules.errors import ModuleError
from modules.manifest import Health, Resources, SamplingPolicy
from modules.tensors import TensorSpec

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.transport import Progress
    from cloud_hub.packaging import ModuleRelease

_SAMPLING = "Sampling"
_HEALTH = "Health"
_RESOURCES = "Resources"
_SCRIPT = "Entry script"
_Options = TypeVar("_Options", SamplingPolicy, Health, Resources)


@dataclass(frozen=True)
class _Parts:
    """The request without what uploads and profiles add."""

    labels: dict[str, tuple[str, ...]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sampling: SamplingPolicy | None
    health: Health | None
    resources: Resources | None
    publisher: str


# The options, so that the command below reads as a list.
Model = Annotated[ModelRef, typer.Argument(parser=ModelRef.parse, metavar="NAME:VERSION", help="Such as digits:2.")]
Profiles = Annotated[list[str], typer.Option("--profile", "-p", help="Device profile; may be given more than once.")]
Reference = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Sample of the training inputs, .npz or .csv: what drift means.")
]
Golden = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Inputs of the self-test, .npz; else the sample's first rows.")
]
Labels = Annotated[
    list[str], typer.Option(metavar="TENSOR=A,B,C", help="Names of classes or features; may be given more than once.")
]
Entry = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Script with init() and run(data).", rich_help_panel=_SCRIPT)
]
Inputs = Annotated[
    list[str],
    typer.Option("--input", metavar="NAME:TYPE:SHAPE", help="Such as image:FP32:-1,64.", rich_help_panel=_SCRIPT),
]
Results = Annotated[
    list[str],
    typer.Option("--result", metavar="NAME:TYPE:SHAPE", help="Such as class:INT64:-1.", rich_help_panel=_SCRIPT),
]
Rate = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of predictions sampled.", rich_help_panel=_SAMPLING)
]
Window = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Length of a window of counts.", rich_help_panel=_SAMPLING)
]
LowConfidence = Annotated[
    float | None, typer.Option(help="Below it a prediction is one of low confidence.", rich_help_panel=_SAMPLING)
]
LowConfidenceRate = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of those sampled.", rich_help_panel=_SAMPLING)
]
First = Annotated[
    int | None, typer.Option(min=0, help="First predictions, all of them sampled.", rich_help_panel=_SAMPLING)
]
Probation = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Serving before it counts.", rich_help_panel=_HEALTH)
]
ProbationInferences = Annotated[
    int | None, typer.Option(min=0, help="Predictions before it counts.", rich_help_panel=_HEALTH)
]
ProbationDeadline = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="When probation has to be over.", rich_help_panel=_HEALTH)
]
LatencyBound = Annotated[
    float | None, typer.Option(metavar="MS", help="99th percentile during probation.", rich_help_panel=_HEALTH)
]
MaxErrorRate = Annotated[
    float | None, typer.Option(min=0, max=1, help="Server errors during probation.", rich_help_panel=_HEALTH)
]
ErrorFactor = Annotated[
    float | None, typer.Option(help="Errors against the version before; 0: not compared.", rich_help_panel=_HEALTH)
]
LatencyFactor = Annotated[
    float | None, typer.Option(help="Latency against the version before; 0: not compared.", rich_help_panel=_HEALTH)
]
Rtol = Annotated[float | None, typer.Option(help="Of golden outputs, relative.", rich_help_panel=_HEALTH)]
Atol = Annotated[float | None, typer.Option(help="Of golden outputs, absolute.", rich_help_panel=_HEALTH)]
Publisher = Annotated[str, typer.Option(metavar="NAME", help="Who will sign it; the hub's own publisher without it.")]
Threads = Annotated[int | None, typer.Option(min=0, help="0: all cores but one.", rich_help_panel=_RESOURCES)]
Memory = Annotated[
    int | None, typer.Option(metavar="MIB", min=0, help="Limit of the worker.", rich_help_panel=_RESOURCES)
]


def build(
    context: typer.Context,
    model: Model,
    profile: Profiles,
    reference: Reference = None,
    golden: Golden = None,
    label: Labels = [],  # noqa: B006 - typer reads the defaults, nobody changes them
    entry: Entry = None,
    tensor_in: Inputs = [],  # noqa: B006
    tensor_out: Results = [],  # noqa: B006
    rate: Rate = None,
    window: Window = None,
    low_confidence: LowConfidence = None,
    low_confidence_rate: LowConfidenceRate = None,
    first: First = None,
    probation: Probation = None,
    probation_inferences: ProbationInferences = None,
    probation_deadline: ProbationDeadline = None,
    latency_bound: LatencyBound = None,
    max_error_rate: MaxErrorRate = None,
    error_factor: ErrorFactor = None,
    latency_factor: LatencyFactor = None,
    rtol: Rtol = None,
    atol: Atol = None,
    threads: Threads = None,
    memory: Memory = None,
    publisher: Publisher = "",
    output: Output = Format.TABLE,
) -> None:
    """Build a module from a model version, one per profile: manifest, chunks, golden answers, reference profile."""
    kept = {"rate": rate, "window_s": window, "first": first}
    unsure = {"low_confidence": low_confidence, "low_confidence_rate": low_confidence_rate}
    soak = {"probation_s": probation, "probation_inferences": probation_inferences}
    until = {"probation_deadline_s": probation_deadline}
    bounds = {"latency_bound_ms": latency_bound, "max_error_rate": max_error_rate, "rtol": rtol, "atol": atol}
    factors = {"error_factor": error_factor, "latency_factor": latency_factor}
    parts = _Parts(
        labels={tensor: tuple(names.split(",")) for tensor, names in parse_pairs(label).items()},
        inputs=tuple(map(_tensor, tensor_in)),
        outputs=tuple(map(_tensor, tensor_out)),
        sampling=_options(SamplingPolicy, kept | unsure),
        health=_options(Health, soak | until | bounds | factors),
        resources=_options(Resources, {"threads": threads, "memory_mib": memory}),
        publisher=publisher,
    )
    found = act(context, lambda hub: _build_all(hub, model, profile, (reference, golden, entry), parts))
    from cloud_hub.operator import render

    show(found, output, render.modules)
    if output is Format.TABLE:
        note(f"built; devices take it once signed: mooring module sign {model.name}:{model.version}")


async def _build_all(
    hub: HubClient, model: ModelRef, profiles: list[str], files: tuple[Path | None, ...], parts: _Parts
) -> list[ModuleRelease]:
    total = sum(file.stat().st_size for file in files if file is not None and file.is_file())
    with transferring(str(model.name), total) as progress:
        digests = [await _upload(hub, file, progress) for file in files]
    return [await _build_one(hub, model, profile, digests, parts) for profile in profiles]


async def _build_one(hub: HubClient, model: ModelRef, profile: str, digests: list[str], parts: _Parts) -> ModuleRelease:
    from cloud_hub.building.request import BuildRequest

    return await hub.build(
        BuildRequest(
            model=model.name,
            version=model.version,
            profile=profile,
            reference=digests[0],
            golden=digests[1],
            entry=digests[2],
            labels=parts.labels,
            inputs=parts.inputs,
            outputs=parts.outputs,
            sampling=parts.sampling,
            health=parts.health,
            resources=parts.resources,
            publisher=parts.publisher,
        )
    )


async def _upload(hub: HubClient, file: Path | None, progress: Progress) -> str:
    """The upload's digest; empty for no file."""
    return "" if file is None else (await hub.upload(file, progress)).sha256


def _options(kind: type[_Options], values: Mapping[str, float | int | None]) -> _Options | None:
    """The options that were given, over the defaults; none at all leaves the choice to the hub."""
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return msgspec.convert(given, kind) if given else None
    except (msgspec.ValidationError, ModuleError) as error:
        raise typer.BadParameter(str(error)) from error


def _tensor(text: str) -> TensorSpec:
    name, _, rest = text.partition(":")
    datatype, _, shape = rest.partition(":")
    try:
        return TensorSpec(name, datatype, tuple(int(number) for number in shape.split(",") if number))
    except (ValueError, ModuleError) as error:
        raise typer.BadParameter(
            f"expected NAME:TYPE:SHAPE such as image:FP32:-1,64, got {text!r} ({error})"
        ) from error
