"""An ONNX model in ONNX Runtime on the CPU. Called by `child`, and imported nowhere else: the libraries are heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from modules.tensors import ONNX_TYPES, TensorSpec


class Loaded:
    """An ONNX model in ONNX Runtime."""

    recorded: tuple[TensorSpec, ...] = ()

    def __init__(self, session: onnxruntime.InferenceSession, labels: Mapping[str, tuple[str, ...]]) -> None:
        self._session = session
        self.inputs = tuple(_spec(value, labels) for value in session.get_inputs())
        self.outputs = tuple(_spec(value, labels) for value in session.get_outputs())
        self.fixed_rows = max((spec.shape[0] for spec in self.inputs if spec.shape), default=0)

    def answer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        answers = self._session.run(None, dict(feeds))
        return dict(zip((spec.name for spec in self.outputs), answers, strict=True))


def open_onnx(path: str, labels: Mapping[str, tuple[str, ...]]) -> Loaded:
    """The model in ONNX Runtime on the CPU, after the ONNX checker has passed it."""
    try:
        onnx.checker.check_model(path)
    except Exception as error:  # the checker raises types of its own and protobuf's
        raise ValueError(f"{Path(path).name} is not a valid ONNX model: {error}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise ValueError(f"{Path(path).name} does not load in ONNX Runtime: {error}") from error
    return Loaded(session, labels)


def _spec(value: onnxruntime.NodeArg, labels: Mapping[str, tuple[str, ...]]) -> TensorSpec:
    """A TensorSpec from ONNX Runtime's NodeArg; named and unknown dimensions become -1."""
    if value.type not in ONNX_TYPES:
        raise ValueError(f"{value.name}: expected a tensor, got {value.type} (for scikit-learn convert without ZipMap)")
    shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in value.shape)
    return TensorSpec(value.name, ONNX_TYPES[value.type], shape, tuple(labels.get(value.name, ())))
