"""The manifest: what an edge module is. Frozen values, canonical JSON bytes, one digest.

The manifest's bytes are a TUF target; its SHA-256 is the module's identity on the device and in monitoring.
Built by the hub's `packaging`, read by the agent after verification. Decoding refuses what this version does not
understand, because a field that is ignored cannot be promised.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from firmware_profiles.profile import NAME_PATTERN, Requirements
from modules.bundle import FileEntry, sha256_hex
from modules.configuration import MAX_SCHEMA_BYTES
from modules.errors import MALFORMED, ManifestError
from modules.runtime import NEWER_AGENT as NEWER_AGENT
from modules.runtime import Runtime as Runtime  # a word of the manifest, too
from modules.runtime import Stage
from modules.sampling import SamplingPolicy as SamplingPolicy  # likewise
from modules.tensors import TensorSpec

Priority = Literal["high", "normal", "low"]
FORMAT = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


class Lineage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a module comes from: the registry's model version, and how that was made."""

    model: str
    model_version: int
    author: str = ""
    training_run: str = ""
    git_commit: str = ""
    datasets: tuple[str, ...] = ()


class Resources(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of the worker: threads (0 = cores minus one), memory in MiB (0 = no limit), request size in bytes.

    A prediction that takes longer than `request_deadline_s`, waiting included, is ended and answered 504. `cpu_percent`
    is what it may take of the processors (100 = one of them, 0 = no limit), `gpu_memory_mib` of an accelerator's memory
    (0 = no limit). `priority` weighs modules of one device against each other. Agents of before version 0.2 refuse a
    manifest that says one of the last three.
    """

    threads: int = 0
    memory_mib: int = 0
    max_request_bytes: int = 8 * 1024 * 1024
    max_queue: int = 256
    request_deadline_s: float = 60.0
    cpu_percent: int = 0
    gpu_memory_mib: int = 0
    priority: Priority = "normal"

    @property
    def agent_version(self) -> str:
        """The lowest that understands this, empty where all do."""
        plain = (self.cpu_percent, self.gpu_memory_mib, self.priority) == (0, 0, "normal")
        return "" if plain else NEWER_AGENT

    def __post_init__(self) -> None:
        for name, value, most in (
            ("threads", self.threads, 1024),
            ("memory_mib", self.memory_mib, 2**24),
            ("cpu_percent", self.cpu_percent, 102_400),
            ("gpu_memory_mib", self.gpu_memory_mib, 2**24),
        ):
            if not 0 <= value <= most:
                raise ManifestError(f"resources.{name}: expected 0 to {most}, got {value}")
        if not 0.01 <= self.request_deadline_s <= 86_400:
            got = self.request_deadline_s
            raise ManifestError(f"resources.request_deadline_s: expected 0.01 to 86400 seconds, got {got}")


class Health(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What "verified healthy" means for this module.

    Golden inputs must give the golden outputs within rtol and atol; then, serving, for `probation_s` seconds and
    `probation_inferences` predictions the share of server errors stays at most `max_error_rate`, the 99th percentile
    of latency at most `latency_bound_ms` (0 = unbounded), and the worker does not crash. All that within
    `probation_deadline_s`. Nor may it fail `error_factor` times as often as the module that it replaces, or be
    `latency_factor` times as slow, beyond chance; 0 does not compare, and where nothing is said, the device's setting
    counts. Agents of before version 0.2 refuse a manifest that says it.
    """

    golden: str = ""
    rtol: float = 1e-3
    atol: float = 1e-4
    load_deadline_s: float = 60.0
    latency_bound_ms: float = 0.0
    probation_s: float = 60.0
    probation_inferences: int = 0
    probation_deadline_s: float = 3600.0
    max_error_rate: float = 0.01
    error_factor: float | msgspec.UnsetType = msgspec.UNSET
    latency_factor: float | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        for name, factor in (("error_factor", self.error_factor), ("latency_factor", self.latency_factor)):
            if factor is not msgspec.UNSET and factor != 0 and not 1.0 <= factor <= 1000.0:
                raise ManifestError(f"health.{name}: expected 0 (not compared) or 1 to 1000, got {factor}")

    @property
    def agent_version(self) -> str:
        """The lowest that understands this, empty where all do."""
        says = {self.error_factor, self.latency_factor} != {msgspec.UNSET}
        return NEWER_AGENT if says else ""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One edge module, for one device profile. `reference` is the path of the reference profile, or empty.

    `config_schema` is what a configuration of the module must be: a JSON Schema (2020-12) as text. Where it is absent,
    any object may be one. Agents of before version 0.2 refuse a manifest that has it.
    """

    name: str
    version: int
    profile: str
    lineage: Lineage
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[FileEntry, ...]
    runtime: Runtime = Runtime()
    requires: Requirements = Requirements()
    resources: Resources = Resources()
    health: Health = Health()
    sampling: SamplingPolicy = SamplingPolicy()
    reference: str = ""
    format: int = FORMAT
    config_schema: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        for field, value in (("name", self.name), ("profile", self.profile)):
            if not re.fullmatch(NAME_PATTERN, value):
                raise ManifestError(f"manifest.{field}: expected {NAME_PATTERN}, got {value[:80]!r}")
        if self.format != FORMAT:
            raise ManifestError(f"manifest of {self.name}: expected format {FORMAT}, got {self.format}")
        if self.version < 1:
            raise ManifestError(f"manifest of {self.name}: expected a version of at least 1, got {self.version}")
        if self.config_schema is not msgspec.UNSET and not 2 <= len(self.config_schema) <= MAX_SCHEMA_BYTES:
            raise ManifestError(f"manifest of {self.name}: expected a schema of 2 to {MAX_SCHEMA_BYTES} characters")
        paths = [entry.path for entry in self.files]
        if len({path.lower() for path in paths}) != len(paths):
            raise ManifestError(f"manifest of {self.name}: a path stands twice among the files")
        for path in filter(None, (*self.runtime.paths, self.reference, self.health.golden)):
            if path not in paths:
                raise ManifestError(f"manifest of {self.name}: {path} is named but is not among the files")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The chain, in order: one stage with the module's own tensors where the runtime names none."""
        runtime = self.runtime
        if runtime.stages:
            return runtime.stages
        backend = "script" if runtime.entry else runtime.backend
        return (
            Stage(
                self.name, self.inputs, self.outputs, backend, runtime.model, runtime.entry, runtime.providers,
                runtime.fallback,
            ),
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def file(self, path: str) -> FileEntry:
        """The entry of `path`. Raises ManifestError when there is none."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise ManifestError(f"manifest of {self.name}: no file {path}")


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON: sorted keys, no white space, so that the same manifest has the same digest everywhere."""
    return msgspec.json.encode(manifest, order="sorted")


def decode_manifest(data: bytes) -> Manifest:
    """Raises ManifestError, with the field that does not fit."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"manifest: expected at most {MAX_MANIFEST_BYTES} bytes, got {len(data)}")
    try:
        return msgspec.json.decode(data, type=Manifest)
    except MALFORMED as error:
        raise ManifestError(f"manifest: {error}") from error


def manifest_digest(data: bytes) -> str:
    """The module's identity: SHA-256 (hex) of the manifest's bytes as received."""
    return sha256_hex(data)
