"""The known answers and the reference profile of a model, as files. Called by `child`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cloud_hub.probe_data import Arrays, to_tensor
from cloud_hub.probing.models import Model
from cloud_hub.reference import profile_training
from modules.tensors import GoldenCase, GoldenSet, TensorSpec, encode_golden
from modules.windows import ReferenceProfile, encode_reference

BATCH_ROWS = 1024


def write_golden(folder: Path, model: Model, golden: Arrays) -> int:
    """One case per row of the golden inputs, with what the model answers. Returns the number of cases."""
    cases = []
    for feeds in _batches(model, golden, 1):
        answers = model.answer(feeds)
        inputs = tuple(to_tensor(spec.name, feeds[spec.name]) for spec in model.inputs)
        cases.append(GoldenCase(inputs, tuple(to_tensor(name, array) for name, array in answers.items())))
    if cases:
        (folder / "golden.msgpack").write_bytes(encode_golden(GoldenSet(tuple(cases))))
    return len(cases)


def write_reference(folder: Path, model: Model, training: Arrays, inputs: tuple[TensorSpec, ...]) -> ReferenceProfile:
    """The reference profile of the training sample and of the model's answers to it."""
    answers = [model.answer(feeds) for feeds in _batches(model, training, BATCH_ROWS)]
    if not answers:
        raise ValueError(f"expected at least {model.fixed_rows} rows in the training sample, got {training.rows}")
    joined = {spec.name: np.concatenate([answer[spec.name] for answer in answers]) for spec in model.outputs}
    rows = min(len(array) for array in joined.values())
    seen = {spec.name: training.arrays[spec.name][:rows] for spec in inputs}
    profile = profile_training(seen, joined, inputs, model.outputs)
    (folder / "reference.json").write_bytes(encode_reference(profile))
    return profile


def _batches(model: Model, data: Arrays, rows: int) -> Iterator[dict[str, Any]]:
    """Slices of `rows` rows, or of as many as a model with a fixed first dimension takes; there, a rest is left out."""
    step = model.fixed_rows if model.fixed_rows > 0 else rows
    end = data.rows - step + 1 if model.fixed_rows > 0 else data.rows
    for start in range(0, end, step):
        yield {name: array[start : start + step] for name, array in data.arrays.items()}
