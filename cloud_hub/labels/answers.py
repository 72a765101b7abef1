"""What one sampled prediction answered, read from its tensors, and how right that was. Pure; used by `join`."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cloud_hub.labels.outputs import LARGEST, Output
from modules.messages import Sample
from modules.tensors import NUMPY_CODES, Tensor

BINS: Final = 10  # of the confidence, for the reliability diagram
MAX_SCORES: Final = 256  # that are kept of an answer
SMALLEST: Final = 1e-15  # a score of 0 for the truth costs -ln of this
_SUM_TOLERANCE: Final = 1e-2  # as in `cloud_hub.reference`
_FloatArray = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Answer:
    """A number, or the place of a class (-1: of no known one). `scores` are probabilities, if they were that.

    `text` is the class itself where no list of classes is known.
    """

    predicted: float
    confidence: float | None = None
    scores: _FloatArray | None = None
    text: str = ""


@dataclass(frozen=True)
class Score:
    """Error of a class: 0 or 1; of a number: predicted minus truth."""

    error: float
    log_loss: float | None = None
    brier: float | None = None
    bin: int | None = None
    cell: int | None = None


def tensors_of(sample: Sample) -> dict[str, Tensor]:
    """The outputs whose values are as the model gave them, by name."""
    changed = {name.partition("[")[0] for name in sample.redacted}
    return {tensor.name: tensor for tensor in sample.outputs if tensor.name not in changed}


def read_answer(output: Output, tensors: Mapping[str, Tensor]) -> Answer | None:
    """None where the sample does not hold it."""
    tensor = tensors.get(output.tensor)
    if tensor is None:
        return None
    if tensor.datatype == "BYTES":
        text = _text_at(tensor, output.index)
        return None if text is None or output.kind == "number" else _class_answer(output, text)
    values = np.frombuffer(tensor.data, NUMPY_CODES[tensor.datatype])
    if output.scores:
        return _scores_answer(output, values.astype(np.float64))
    if output.index >= values.size:
        return None
    value = values[output.index].item()
    if output.kind == "number":
        return None if math.isnan(value) else Answer(min(max(float(value), -LARGEST), LARGEST))
    return _class_answer(output, str(value))


def score(output: Output, answer: Answer, truth: float, label: object = None) -> Score:
    """`truth` as `Output.place_of` gave it; `label` is the label itself, compared where no classes are known."""
    if output.kind == "number":
        return Score(answer.predicted - truth)
    wrong = float(answer.text != label) if not output.classes else float(answer.predicted != truth)
    confidence, cell = answer.confidence, None
    if confidence is not None and output.edges:
        cell = confidence_cell(output.edges, confidence)
    if answer.scores is None or confidence is None:
        return Score(wrong, cell=cell)
    right = float(answer.scores[int(truth)])
    log_loss = -math.log(min(max(right, SMALLEST), 1.0))
    brier = float((answer.scores**2).sum()) - 2 * right + 1
    return Score(wrong, log_loss, brier, min(int(confidence * BINS), BINS - 1), cell)


def confidence_cell(edges: tuple[float, ...], confidence: float) -> int:
    """The cell that a device counts this confidence into (`modules.windows`)."""
    bins = len(edges) - 1
    if confidence < edges[0]:
        return bins
    if confidence > edges[-1]:
        return bins + 1
    return min(bisect.bisect_right(edges, confidence) - 1, bins - 1)


def pack_scores(scores: _FloatArray | None) -> bytes | None:
    return None if scores is None or scores.size > MAX_SCORES else scores.astype("<f4").tobytes()


def unpack_scores(data: bytes | None) -> _FloatArray | None:
    return None if data is None else np.frombuffer(data, "<f4").astype(np.float64)


def _scores_answer(output: Output, values: _FloatArray) -> Answer | None:
    if values.size == 1 and len(output.classes) == 2:
        values = np.array([1.0 - values[0], values[0]])
    if values.size != len(output.classes):
        return None
    if np.isnan(values).any():
        return Answer(-1.0)  # no class at all: wrong, whatever the truth is
    confidence = float(values.max())
    if not math.isfinite(confidence):
        return Answer(float(values.argmax()))
    probabilities = values.min() >= -_SUM_TOLERANCE and abs(values.sum() - 1.0) <= _SUM_TOLERANCE
    # float32, as they are stored: a label that is corrected later must give the same.
    scores = values.astype(np.float32).astype(np.float64) if probabilities else None
    return Answer(float(values.argmax()), confidence, scores)


def _class_answer(output: Output, text: str) -> Answer:
    if not output.classes:
        return Answer(-1.0, text=text)
    if text in output.classes:
        return Answer(float(output.classes.index(text)))
    place = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    return Answer(float(place) if place < len(output.classes) else -1.0)


def _text_at(tensor: Tensor, index: int) -> str | None:
    place = 0
    for number in range(index + 1):
        size = int.from_bytes(tensor.data[place : place + 4], "little")
        if place + 4 + size > len(tensor.data):
            return None
        if number == index:
            return tensor.data[place + 4 : place + 4 + size].decode(errors="replace")
        place += 4 + size
    return None
