"""What a worker sees of the agent's environment. Called by whoever starts a process that runs a module's code."""

from __future__ import annotations

from collections.abc import Mapping

# Enough for the interpreter and for accelerator libraries, no secrets.
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV")
_INHERITED_PREFIXES = ("CUDA_", "NVIDIA_")


def worker_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """ONNX Runtime's telemetry is off before anything imports it."""
    kept = {k: v for k, v in ours.items() if k in _INHERITED or k.startswith(_INHERITED_PREFIXES)}
    return {**kept, "ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1", "HOME": "/nonexistent"}
