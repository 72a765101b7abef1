"""`mooring module build`: uploads what the build needs, and asks for one module per profile.

The options stand in `build_options`, how the module runs is read by `build_runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import typer

from cloud_hub.asking import words
from cloud_hub.operator.cli import build_options as options
from cloud_hub.operator.cli.build_base import local_base
from cloud_hub.operator.cli.build_runtime import parse_provider, parse_tensor, read_runtime
from cloud_hub.operator.cli.session import (
    Format,
    ModelRef,
    Output,
    act,
    note,
    parse_pairs,
    show,
    told,
    transferring,
    watching,
)
from cloud_hub.operator.documents import read_document
from modules.errors import ModuleError
from modules.manifest import Health, Resources, SamplingPolicy

if TYPE_CHECKING:
    from cloud_hub.building.request import ContainerRequest
    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.transport import Progress
    from cloud_hub.packaging import ModuleRelease

_Options = TypeVar("_Options", SamplingPolicy, Health, Resources)
_CONTAINER = ("base", "dockerfile")


@dataclass(frozen=True)
class _Order:
    """What to ask for: fields of a BuildRequest, and the files whose digests go into it, by field.

    `container` is what else a container may have, None where none is asked for; `wheels` are for its worker.
    """

    model: ModelRef
    fields: Mapping[str, Any]
    files: Mapping[str, Path]
    wheels: tuple[Path, ...] = ()
    container: Mapping[str, Any] | None = None


def build(
    context: typer.Context,
    model: options.Model,
    profile: options.Profiles,
    reference: options.Reference = None,
    golden: options.Golden = None,
    label: options.Labels = [],  # noqa: B006 - typer reads the defaults, nobody changes them
    runtime: options.RuntimeFile = None,
    backend: options.BackendName = "",
    provider: options.Providers = [],  # noqa: B006
    allow_fallback: options.Fallback = False,
    batch_rows: options.BatchRows = None,
    instances: options.Instances = None,
    entry: options.Entry = None,
    tensor_in: options.Inputs = [],  # noqa: B006
    tensor_out: options.Results = [],  # noqa: B006
    environment: options.Environment = None,
    python: options.Python = "",
    folder: options.Folder = "",
    base: options.Base = "",
    dockerfile: options.Dockerfile = None,
    wheel: options.Wheels = [],  # noqa: B006
    rate: options.Rate = None,
    window: options.Window = None,
    low_confidence: options.LowConfidence = None,
    low_confidence_rate: options.LowConfidenceRate = None,
    first: options.First = None,
    stratum: options.Strata = [],  # noqa: B006
    quota: options.Quota = None,
    redact: options.Redact = [],  # noqa: B006
    ring_rows: options.RingRows = None,
    blobs_above: options.BlobsAbove = None,
    probation: options.Probation = None,
    probation_inferences: options.ProbationInferences = None,
    probation_deadline: options.ProbationDeadline = None,
    latency_bound: options.LatencyBound = None,
    max_error_rate: options.MaxErrorRate = None,
    error_factor: options.ErrorFactor = None,
    latency_factor: options.LatencyFactor = None,
    rtol: options.Rtol = None,
    atol: options.Atol = None,
    threads: options.Threads = None,
    memory: options.Memory = None,
    cpu: options.Processors = None,
    gpu_memory: options.GpuMemory = None,
    priority: options.Weight = None,
    publisher: options.Publisher = "",
    config_schema: options.ConfigSchema = None,
    output: Output = Format.TABLE,
) -> None:
    """Build a module from a model version, one per profile: manifest, chunks, golden answers, reference profile."""
    kept = {"rate": rate, "window_s": window, "first": first}
    unsure = {"low_confidence": low_confidence, "low_confidence_rate": low_confidence_rate}
    more = _said(lambda: words.policy(stratum, redact, quota, ring_rows, blobs_above))
    soak = {"probation_s": probation, "probation_inferences": probation_inferences}
    until = {"probation_deadline_s": probation_deadline}
    bounds = {"latency_bound_ms": latency_bound, "max_error_rate": max_error_rate, "rtol": rtol, "atol": atol}
    limits = {"cpu_percent": cpu, "gpu_memory_mib": gpu_memory, "priority": priority}
    factors = {"error_factor": error_factor, "latency_factor": latency_factor}
    runs = {"backend": backend, "fallback": allow_fallback, "batch_rows": batch_rows, "instances": instances}
    wishes = {"providers": tuple(map(parse_provider, provider))}
    said = read_runtime(runtime, runs | wishes)
    fields = {
        "labels": {tensor: tuple(names.split(",")) for tensor, names in parse_pairs(label).items()},
        "inputs": tuple(map(parse_tensor, tensor_in)),
        "outputs": tuple(map(parse_tensor, tensor_out)),
        "sampling": _options(SamplingPolicy, kept | unsure | more),
        "health": _options(Health, soak | until | bounds | factors),
        "resources": _options(Resources, limits | {"threads": threads, "memory_mib": memory}),
        "runtime": said.runtime,
        "publisher": publisher,
        "python": python,
        "folder": folder,
    }
    with told():
        fields |= {"config_schema": read_document(config_schema)} if config_schema else {}
    files = {"reference": reference, "golden": golden, "entry": entry, "environment": environment}
    with told(), local_base(base) as archive:
        given = {name: file for name, file in (files | {"base": archive, "dockerfile": dockerfile}).items() if file}
        named = {"base": base} if base and archive is None else {}
        container = None if not (base or dockerfile or said.container) else {**(said.container or {}), **named}
        if container is not None:
            _container(container)  # what is wrong with it is said before anything is sent
        order = _Order(model, fields, given, tuple(wheel), container)
        found = act(context, lambda hub: _build_all(hub, profile, order))
    from cloud_hub.operator import render

    show(found, output, render.modules)
    if output is Format.TABLE:
        note(f"built; devices take it once signed: mooring module sign {model.name}:{model.version}")


async def _build_all(hub: HubClient, profiles: list[str], order: _Order) -> list[ModuleRelease]:
    total = sum(file.stat().st_size for file in (*order.files.values(), *order.wheels) if file.is_file())
    with transferring(str(order.model.name), total) as progress:
        digests = {name: await _upload(hub, file, progress) for name, file in order.files.items()}
        wheels = [await _upload(hub, file, progress) for file in order.wheels]
    fields = {**order.fields, **{name: digest for name, digest in digests.items() if name not in _CONTAINER}}
    if order.container is not None:
        parts = {name: digest for name, digest in digests.items() if name in _CONTAINER}
        fields["container"] = _container({**order.container, **parts, "wheels": wheels})
    return [await _build_one(hub, profile, order.model, fields) for profile in profiles]


async def _build_one(hub: HubClient, profile: str, model: ModelRef, fields: Mapping[str, Any]) -> ModuleRelease:
    from cloud_hub.building.request import BuildRequest

    with watching(f"{model.name}:{model.version}/{profile}") as watch:
        return await hub.build(BuildRequest(model.name, model.version, profile, **fields), watch)


def _container(said: Mapping[str, Any]) -> ContainerRequest:
    from cloud_hub.building.request import ContainerRequest

    try:
        return msgspec.convert(said, ContainerRequest)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(f"[container]: {error}", param_hint="--runtime") from error


async def _upload(hub: HubClient, file: Path, progress: Progress) -> str:
    return (await hub.upload(file, progress)).sha256


def _said(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is wrong with an option ends the command."""
    try:
        return read()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _options(kind: type[_Options], values: Mapping[str, Any]) -> _Options | None:
    """The options that were given, over the defaults; none at all leaves the choice to the hub."""
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return msgspec.convert(given, kind) if given else None
    except (msgspec.ValidationError, ModuleError) as error:
        raise typer.BadParameter(str(error)) from error
