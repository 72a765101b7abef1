"""Which package runs TFLite models here: LiteRT, or where only that exists the older tflite-runtime.

Importing proves nothing: tflite-runtime 2.14 with NumPy 2 imports and then fails at the first interpreter. So one is
made, of the smallest model there is. Called by `tflite`, and by whoever asks what a device has, in a child process.
"""

from __future__ import annotations

import importlib
from typing import Any

from agent.backends import BackendError

# LiteRT runs what the other does, up to twenty times as fast with 8-bit integers; the other has wheels for 32-bit Arm.
PACKAGES = ("ai_edge_litert", "tflite_runtime")


def open_runtime() -> Any:  # noqa: ANN401 - the module of either package, which ship no types
    """The module with `Interpreter` and `load_delegate`. Raises BackendError("load-failed") with what was tried."""
    reasons = []
    for package in PACKAGES:
        try:
            found = importlib.import_module(f"{package}.interpreter")
            found.Interpreter(model_content=smallest_model(), num_threads=1).allocate_tensors()
        except ImportError as error:
            reasons.append(f"{package}: {error}")
        except Exception as error:  # SystemError, among others, where the library does not fit NumPy
            reasons.append(f"{package} is installed and makes no interpreter: {type(error).__name__}: {error}"[:300])
        else:
            return found
    tried = "; ".join(reasons)
    text = f"expected a runtime for TFLite models, got none (the extra tflite brings one): {tried}"
    raise BackendError("load-failed", text)


def smallest_model() -> bytes:
    """One float tensor that goes in and comes out: a flatbuffer of the format's schema."""
    return bytes.fromhex(_SMALLEST)


_SMALLEST = (
    "1800000054464c3300000e00140010000c000800000004000e000000100000001c00000084000000030000000100000008000000"
    "040004000400000001000000100000000c00140010000c00080004000c0000001000000010000000140000001800000000000000"
    "0100000000000000010000000000000001000000100000000c000c0008000000000004000c000000080000000c00000001000000"
    "78000000010000000100000000000000"
)
