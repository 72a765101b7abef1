"""Which function computes which step: looked up once, at load."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from agent.backends import Array
from agent.backends.steps import numbers, overlap, pictures, texts
from modules.steps import (
    ArgMax,
    Cast,
    Crop,
    Decode,
    Letterbox,
    NonMaxSuppression,
    Normalise,
    Reshape,
    Resize,
    ScaleBoxes,
    Sigmoid,
    Slice,
    Softmax,
    Step,
    Threshold,
    Tokenise,
    TopK,
    Transpose,
)
from modules.steps.specs import Specs

Tensors: TypeAlias = dict[str, Array]
Compute = Callable[[Tensors], None]  # reads its tensors, adds its own; raises ValueError for what does not fit

_PLAIN: dict[type, Callable[[Any, Tensors], None]] = {
    Cast: numbers.cast,
    Transpose: numbers.transpose,
    Reshape: numbers.reshape,
    Slice: numbers.slice_,
    Softmax: numbers.softmax,
    Sigmoid: numbers.sigmoid,
    ArgMax: numbers.argmax,
    Threshold: numbers.threshold,
    Resize: pictures.resize_step,
    Letterbox: pictures.letterbox_step,
    Crop: pictures.crop_step,
    ScaleBoxes: overlap.scale_boxes,
    NonMaxSuppression: overlap.suppress,
}


def prepared(step: Step, have: Specs, slot: Path, limit_bytes: int) -> Compute:
    """Raises StepError when the step does not fit `have`; OSError, ValueError for a vocabulary that is none."""
    step.gives(have)
    match step:
        case Normalise():
            return numbers.normaliser(step, len(have[step.tensor].shape))
        case TopK():
            return partial(numbers.top_k, step, step.labels_for(have[step.tensor]))
        case Decode():
            return pictures.Decoder(step, limit_bytes)
        case Tokenise():
            return texts.Tokeniser(step, slot / step.vocabulary)
        case _:
            return partial(_PLAIN[type(step)], step)
