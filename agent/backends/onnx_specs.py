"""What a session takes and gives beside what the manifest says, and text in ONNX Runtime's form. Called by `onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agent.backends import Array, BackendError
from modules.tensors import ONNX_TYPES, TensorSpec


def check_specs(kind: str, specs: tuple[TensorSpec, ...], nodes: list[Any], complete: bool) -> None:
    """`complete`: whether the manifest must name all there are. Raises BackendError("load-failed")."""
    found = {node.name: node for node in nodes}
    missing = [spec.name for spec in specs if spec.name not in found]
    extra = [name for name in found if name not in {spec.name for spec in specs}] if complete else []
    if missing or extra:
        expected = ", ".join(spec.name for spec in specs)
        raise BackendError("load-failed", f"{kind}s: expected {expected}, got {', '.join(found)}")
    for spec in specs:
        datatype = ONNX_TYPES.get(found[spec.name].type, found[spec.name].type)
        shape = list(found[spec.name].shape)
        if datatype != spec.datatype or not _fits(spec.shape, shape, complete):
            raise BackendError(
                "load-failed",
                f"{kind} {spec.name}: expected {spec.datatype} {list(spec.shape)}, got {datatype} {shape}",
            )


def as_text(inputs: Mapping[str, Array], texts: frozenset[str]) -> dict[str, Array]:
    """The runtime's strings are Unicode. Raises BackendError("bad-input")."""
    return {name: _decoded(name, array) if name in texts else array for name, array in inputs.items()}


def as_bytes(array: Array) -> Array:
    texts = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()]
    result = np.empty(len(texts), dtype=object)
    result[:] = texts
    return result.reshape(array.shape)


def _fits(spec: tuple[int, ...], shape: list[Any], strict: bool) -> bool:
    """Whether the model's shape (numbers, or names and None for free sizes) agrees with the manifest's."""
    if len(spec) != len(shape):
        return not strict and not shape  # converters often leave an output's shape out
    return all(not isinstance(have, int) or have == want for want, have in zip(spec, shape, strict=True))


def _decoded(name: str, array: Array) -> Array:
    try:
        texts = [item.decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise BackendError("bad-input", f"input {name}: expected UTF-8 text, got {error.reason}") from error
    return np.array(texts, dtype=object).reshape(array.shape)
