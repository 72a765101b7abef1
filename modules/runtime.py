"""How a module runs: its backend or its stages, what is done around the model, and where inputs come from.

Frozen values of the manifest. What has its default is not written, so that a module that asks for nothing new keeps its
bytes, and runs on agents that do not know the rest. Pure; read by the hub's build and by the worker.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from modules.containers import Container
from modules.errors import ManifestError
from modules.sources import Source, loops
from modules.steps import Step, step_files
from modules.tensors import TensorSpec

NEWER_AGENT = "0.2.0"  # the first that knows what manifests and policies have had since
CPU = "CPUExecutionProvider"  # ONNX Runtime's own, which runs every node
MAX_STAGES = 16
MAX_INSTANCES = 64
OUR_BACKENDS = ("onnx", "tflite", "fpga", "script")
# Of others: who makes it, and its name. A list of ours and a form for the rest, so that no word of a format is one.
THEIR_BACKENDS = r"^[a-z][a-z0-9]{1,31}\.[a-z][a-z0-9_-]{0,31}$"


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One way to execute a graph: an execution provider of ONNX Runtime or a delegate of LiteRT, with its options."""

    name: str
    options: dict[str, str] = {}


class Stage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one backend loads: a model or a script with the tensors it takes and gives.

    `feeds` says where an input comes from when its name does not: input name -> a tensor of the module or
    `stage.output`. `providers` are asked for in this order, the device's own order where there are none. A node that
    none of them takes makes loading fail, unless `fallback` lets it run on the CPU.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backend: str = "onnx"
    model: str = ""
    entry: str = ""
    providers: tuple[Provider, ...] = ()
    fallback: bool = False
    feeds: dict[str, str] = {}

    def __post_init__(self) -> None:
        check_backend(f"stage {self.name}", self.backend)


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the module runs. `model` is the path of the model file inside the module, `entry` that of its script.

    `process` is a worker of its own, `container` one in a container. `agent` is the agent itself: its files are wheels,
    see `agent.release`. With `stages`, the module is a chain, and backend, model, entry, providers and fallback are the
    stages' own. `before` and `after` are done to the module's inputs and to the last outputs. `instances` is how many
    predictions run at once (0: as the backend likes); requests that wait are run together, up to `batch_rows` rows
    (1: never). `environment` is the folder, among the module's files, of the libraries that its script imports.
    """

    kind: Literal["process", "container", "agent"] = "process"
    backend: str = "onnx"
    model: str = "model.onnx"
    entry: str = ""
    providers: tuple[Provider, ...] = ()
    fallback: bool = False
    stages: tuple[Stage, ...] = ()
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    sources: tuple[Source, ...] = ()
    instances: int = 0
    batch_rows: int = 32
    environment: str = ""
    container: Container | None = None

    def __post_init__(self) -> None:
        check_backend("runtime", self.backend)
        if not 0 <= self.instances <= MAX_INSTANCES:
            raise ManifestError(f"runtime.instances: expected 0 to {MAX_INSTANCES}, got {self.instances}")
        if not 1 <= self.batch_rows <= 65_536:
            raise ManifestError(f"runtime.batch_rows: expected 1 to 65536, got {self.batch_rows}")
        if len(self.stages) > MAX_STAGES or len({stage.name for stage in self.stages}) != len(self.stages):
            raise ManifestError(f"runtime.stages: expected at most {MAX_STAGES}, each name once")
        if (self.kind == "container") != (self.container is not None):
            raise ManifestError(f"runtime: expected a container exactly where kind is container, got {self.kind}")

    @property
    def scripted(self) -> bool:
        """Whether Python code of the module's own runs."""
        return self.answers_by_script or bool(loops(self.sources))

    @property
    def answers_by_script(self) -> bool:
        """Whether such code has a part in predictions; a source's loop beside a model has none."""
        return (
            bool(self.entry) or self.backend == "script" or any(s.entry or s.backend == "script" for s in self.stages)
        )

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of the module that are named here."""
        named = [self.model, self.entry] if not self.stages else []
        named += [path for stage in self.stages for path in (stage.model, stage.entry)]
        named += [*step_files((*self.before, *self.after)), *loops(self.sources)]
        return tuple(path for path in named if path)

    @property
    def is_plain(self) -> bool:
        """Whether agents of before version 0.2 understand it."""
        if self.kind == "container" or self.backend not in ("onnx", "script"):
            return False
        return self == Runtime(self.kind, self.backend, self.model, self.entry)


def check_backend(where: str, backend: str) -> None:
    if backend not in OUR_BACKENDS and not re.fullmatch(THEIR_BACKENDS, backend):
        known = ", ".join(OUR_BACKENDS)
        raise ManifestError(f"{where}: expected a backend among {known} or VENDOR.NAME, got {backend[:80]!r}")
