"""The options of `mooring module build`, in the groups in which its help shows them. Used by `building`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloud_hub.operator.cli.references import Model as Model
from modules.manifest import Priority

_SAMPLING = "Sampling"
_HEALTH = "Health"
_RESOURCES = "Resources"
_SCRIPT = "Entry script"
_RUNTIME = "How it runs"
_CONTAINER = "Container"

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
Strata = Annotated[
    list[str],
    typer.Option(
        "--stratum",
        metavar="NAME=RATE:CONDITION",
        help="More of those that fit, such as hot=0.5:temperature>=30. Repeatable.",
        rich_help_panel=_SAMPLING,
    ),
]
Quota = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Bytes of samples a day: 5MB.", rich_help_panel=_SAMPLING)
]
Redact = Annotated[
    list[str],
    typer.Option(
        metavar="FIELD=ACTION",
        help="drop, hash, coarsen, coarsen:STEP, blur or blur:T,L,H,W. Repeatable.",
        rich_help_panel=_SAMPLING,
    ),
]
RingRows = Annotated[
    str | None,
    typer.Option(metavar="N", help="Predictions that a device keeps, to be asked for.", rich_help_panel=_SAMPLING),
]
BlobsAbove = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Larger tensors come apart from their sample.", rich_help_panel=_SAMPLING),
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
Processors = Annotated[
    int | None,
    typer.Option("--cpu", metavar="PERCENT", min=0, help="Limit; 100 is one processor.", rich_help_panel=_RESOURCES),
]
GpuMemory = Annotated[
    int | None,
    typer.Option(metavar="MIB", min=0, help="Limit of an accelerator's memory.", rich_help_panel=_RESOURCES),
]
Weight = Annotated[
    Priority | None,
    typer.Option("--priority", help="Against other modules of the device.", rich_help_panel=_RESOURCES),
]
RuntimeFile = Annotated[
    Path | None,
    typer.Option(
        "--runtime", metavar="FILE", rich_help_panel=_RUNTIME,
        help="TOML: stages, steps before and after, sources, providers; the options below stand over it.",
    ),
]  # fmt: skip
BackendName = Annotated[
    str,
    typer.Option(metavar="NAME", rich_help_panel=_RUNTIME, help="onnx (the default), tflite, fpga, or another's."),
]
Providers = Annotated[
    list[str],
    typer.Option(
        "--provider", metavar="NAME[:K=V,...]", rich_help_panel=_RUNTIME,
        help="Where the graph is to run, first wish first; may be given more than once.",
    ),
]  # fmt: skip
Fallback = Annotated[
    bool, typer.Option("--allow-fallback", rich_help_panel=_RUNTIME, help="Run on the CPU what no provider takes.")
]
BatchRows = Annotated[
    int | None,
    typer.Option(min=1, rich_help_panel=_RUNTIME, help="Rows of waiting requests that run together; 1: never."),
]
Instances = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=_RUNTIME, help="Predictions that run at the same time.")
]
Environment = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=_SCRIPT, help="Requirement list or conda file of its libraries."),
]
Python = Annotated[
    str,
    typer.Option(metavar="VERSION", rich_help_panel=_SCRIPT, help="Of the devices, for its libraries, such as 3.11."),
]
Folder = Annotated[
    str,
    typer.Option(
        metavar="PATH", rich_help_panel=_SCRIPT, help="Where in AZUREML_MODEL_DIR the model's files lie: digits/3."
    ),
]
Base = Annotated[
    str,
    typer.Option(
        metavar="FILE|IMAGE",
        rich_help_panel=_CONTAINER,
        help="Base image: a tar archive (docker save, OCI layout), the name of one in the engine here, or "
        "HOST/NAME@sha256:... of a registry that the hub may ask.",
    ),
]
Dockerfile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=_CONTAINER, help="Further steps on the base; needs an engine."),
]
Wheels = Annotated[
    list[Path],
    typer.Option("--wheel", metavar="FILE", rich_help_panel=_CONTAINER, help="Of a library that the base lacks."),
]
ConfigSchema = Annotated[
    Path | None,
    typer.Option(
        "--config-schema",
        metavar="FILE",
        help="JSON Schema (2020-12) of the module's configuration, as JSON, YAML or TOML.",
        rich_help_panel=_RUNTIME,
    ),
]
