"""What somebody asks to be built: the body of `POST /v1/modules`. Pure values with their checks."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from cloud_hub.bounds import Version
from firmware_profiles.profile import NAME_PATTERN, Requirements
from modules.manifest import Health, Resources, Runtime, SamplingPolicy
from modules.tensors import TensorSpec


class ContainerRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A module in a container. `base` is the digest of an uploaded base image (an OCI image layout as a tar archive, or
    what `docker save` writes), or HOST/NAME@sha256:... of a registry that the hub may ask. `dockerfile` is that of
    further steps, which need an engine beside the hub, `wheels` those of libraries that the worker needs and the base
    lacks. The rest is as in `modules.containers.Container`.
    """

    base: str = ""
    dockerfile: str = ""
    wheels: tuple[str, ...] = ()
    serves: Literal["worker", "http"] = "worker"
    port: int = 8080
    health: str = "/v2/health/ready"
    network: str = "none"
    gpus: int = 0
    devices: tuple[str, ...] = ()
    writable: tuple[str, ...] = ("/tmp",)  # noqa: S108 - the container's own, in memory
    writable_mib: int = 64
    environment: dict[str, str] = {}
    python: str = "python3"
    command: tuple[str, ...] = ()


class BuildRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What to build. `reference`, `golden` and `entry` are digests of uploads, empty where there is none.

    `reference` is a sample of the training inputs (.npz by input name, or .csv), `golden` an .npz of inputs whose
    answers are computed now; without it the first rows of `reference` serve. `labels` names classes or features by
    tensor name. An `entry` script needs `inputs` and `outputs`, because a script's tensors cannot be read off a file,
    and a `golden` with arrays for both, because the hub runs nobody's script. `publisher` is who will sign it, the
    hub's own publisher when empty.

    `runtime` says how the module runs, where that is more than a model or a script alone: providers, stages, steps,
    sources, batching. What it leaves empty (model, entry) is found among the files. `environment` is the digest of a
    requirement list or conda file of the script's libraries; those, for the profile and for the version `python` of
    its interpreter, become part of the module. `folder` is where, in the module, the model version's files lie: the
    worker's AZUREML_MODEL_DIR when empty, else below it, such as digits/3.
    `container` puts the module into an image, see `cloud_hub.building.container`. `config_schema` is a JSON Schema
    (2020-12, references only within it) that every configuration of the module must satisfy.
    """

    model: str
    version: Version
    profile: str
    reference: str = ""
    golden: str = ""
    entry: str = ""
    labels: dict[str, tuple[str, ...]] = {}
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    sampling: SamplingPolicy | None = None
    health: Health | None = None
    resources: Resources | None = None
    requires: Requirements | None = None
    publisher: str = ""
    runtime: Runtime | None = None
    environment: str = ""
    python: str = ""
    folder: str = ""
    container: ContainerRequest | None = None
    config_schema: dict[str, Any] | None = None  # JSON

    def __post_init__(self) -> None:
        if self.publisher and not re.fullmatch(NAME_PATTERN, self.publisher):
            raise ValueError(f"publisher: expected {NAME_PATTERN}, got {self.publisher[:80]!r}")
        if self.python and not re.fullmatch(r"3\.[0-9]{1,2}", self.python):
            raise ValueError(f"python: expected a version such as 3.11, got {self.python[:80]!r}")
