"""What happens to tensors before and after a model without a script: declared in the manifest, run by the worker.

Pure values with their checks; `agent.backends.steps` computes them.
"""

from __future__ import annotations

import msgspec


class Normalise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="normalise"):
    """(x - mean) / scale along the last axis, as FP32. One number, or one per channel. Reads `tensor`, writes `to`."""

    tensor: str
    to: str = ""
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)


class Softmax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="softmax"):
    """Scores to probabilities along the last axis. Reads `tensor`, writes `to` (empty: in its place)."""

    tensor: str
    to: str = ""


Step = Normalise | Softmax
