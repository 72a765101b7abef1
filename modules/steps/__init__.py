"""What happens to tensors before and after a model without a script: declared in the manifest, run by the worker.

Pure values with their checks; `agent.backends.steps` computes them. Every step reads tensors by name and writes others
(or in their place, where `to` is empty), so that a list of steps reads like a short program. `flow` says which tensors
there are at its end; `modules.chain` holds that against the model's own and the module's.
"""

from __future__ import annotations

from collections.abc import Sequence

from modules.steps.images import Crop, Decode, Letterbox, Resize, ScaleBoxes
from modules.steps.scores import ArgMax, NonMaxSuppression, Sigmoid, Softmax, Threshold, TopK
from modules.steps.shapes import Cast, Normalise, Reshape, Slice, Transpose
from modules.steps.specs import Specs, StepError, row_bytes
from modules.steps.text import Tokenise
from modules.tensors import TensorSpec

__all__ = [
    "ArgMax",
    "Cast",
    "Crop",
    "Decode",
    "Letterbox",
    "NonMaxSuppression",
    "Normalise",
    "Reshape",
    "Resize",
    "ScaleBoxes",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Step",
    "StepError",
    "Threshold",
    "Tokenise",
    "TopK",
    "Transpose",
    "flow",
    "step_files",
]
MAX_STEPS = 64

Step = (
    Cast
    | Transpose
    | Reshape
    | Slice
    | Normalise
    | Decode
    | Resize
    | Letterbox
    | Crop
    | ScaleBoxes
    | Softmax
    | Sigmoid
    | ArgMax
    | TopK
    | Threshold
    | NonMaxSuppression
    | Tokenise
)


def flow(steps: Sequence[Step], have: Specs, limit_bytes: int) -> dict[str, TensorSpec]:
    """The tensors after the steps, by name. Raises StepError: for the first step that does not fit, or that would make
    a tensor of which one row has more than `limit_bytes`.
    """
    if len(steps) > MAX_STEPS:
        raise StepError(f"steps: expected at most {MAX_STEPS}, got {len(steps)}")
    tensors = dict(have)
    for number, step in enumerate(steps):
        for spec in step.gives(tensors):
            if row_bytes(spec) > limit_bytes:
                text = f"expected at most {limit_bytes} bytes in one row of {spec.name}, got {row_bytes(spec)}"
                raise StepError(f"step {number + 1}: {text}; it is refused")
            tensors[spec.name] = spec
    return tensors


def step_files(steps: Sequence[Step]) -> tuple[str, ...]:
    """The files of the module that steps read."""
    return tuple(step.vocabulary for step in steps if isinstance(step, Tokenise))
