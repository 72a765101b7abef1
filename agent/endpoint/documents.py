"""What the endpoint answers to GET and never changes: health, metadata, configuration, and settings as they are.

A module that does not answer is not ready, so all of it is constant. Called by `resources`.
Source: kserve.github.io, V2 protocol; Triton's extensions model_configuration, trace and logging.
"""

from __future__ import annotations

import msgspec

import agent
from agent.endpoint.batches import has_rows
from modules.manifest import Manifest
from modules.tensors import TensorSpec, served

_LOGGING = {
    "log_file": "", "log_info": False, "log_warning": True, "log_error": True, "log_verbose_level": 0,
    "log_format": "default",
}  # fmt: skip
_TRACE = {
    "trace_file": "", "trace_level": ["OFF"], "trace_rate": "0", "trace_count": "-1", "log_frequency": "0",
    "trace_mode": "triton",
}  # fmt: skip
OPEN = frozenset({b"/v2/health/live", b"/v2/health/ready"})  # to everybody: probes carry no token


class Documents:
    """Of one module. `bases` are its paths: without, and with its version."""

    def __init__(self, manifest: Manifest, shares_memory: bool) -> None:
        base = f"/v2/models/{manifest.name}"
        self.bases = (base, f"{base}/versions/{manifest.version}")
        self._manifest = manifest
        self._shares_memory = shares_memory

    def constant(self) -> dict[bytes, bytes]:
        """By path."""
        documents: dict[str, object] = {
            "/v2": self._server(),
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            "/v2/logging": _LOGGING,
            "/v2/trace/setting": _TRACE,
            f"{self.bases[0]}/trace/setting": _TRACE,
        }
        for base in self.bases:
            documents[base] = self._metadata()
            documents[f"{base}/ready"] = {"name": self._manifest.name, "ready": True}
            documents[f"{base}/config"] = self._configuration()
        return {path.encode(): msgspec.json.encode(document) for path, document in documents.items()}

    def _server(self) -> dict[str, object]:
        extensions = ["binary_tensor_data", "parameters", "statistics", "model_configuration"]
        extensions += ["system_shared_memory"] if self._shares_memory else []
        return {"name": "mooring", "version": agent.__version__, "extensions": extensions}

    def _metadata(self) -> dict[str, object]:
        manifest = self._manifest
        return {
            "name": manifest.name,
            "versions": [str(manifest.version)],
            "platform": self._platform(),
            "inputs": [_described(spec) for spec in manifest.inputs],
            "outputs": [_described(spec) for spec in served(manifest.outputs)],
        }

    def _configuration(self) -> dict[str, object]:
        """Triton's: with `max_batch_size` 0, shapes are told whole."""
        manifest = self._manifest
        together = manifest.runtime.batch_rows > 1 and has_rows(manifest)
        told: dict[str, object] = {
            "name": manifest.name,
            "platform": self._platform(),
            "backend": self._platform(),
            "version_policy": {"specific": {"versions": [manifest.version]}},
            "max_batch_size": 0,
            "input": [_configured(spec) for spec in manifest.inputs],
            "output": [_configured(spec) for spec in served(manifest.outputs)],
        }
        return {**told, "dynamic_batching": {"max_queue_delay_microseconds": 0}} if together else told

    def _platform(self) -> str:
        return "script" if self._manifest.runtime.entry else self._manifest.runtime.backend


def _described(spec: TensorSpec) -> dict[str, object]:
    described: dict[str, object] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    if spec.labels:
        described["parameters"] = {"labels": spec.labels}
    return described


def _configured(spec: TensorSpec) -> dict[str, object]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": spec.shape}
