"""One interpreter of a TFLite model, its tensors by name. For one thread at a time. Called by `tflite`.

Names are those of the signature, as TensorFlow's converter writes it; where there is none, those of the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agent.backends import Array, BackendError
from modules.tensors import TensorSpec

SIGNATURE = "serving_default"
_DATATYPES = {
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "bool": "BOOL",
}  # fmt: skip


class Instance:
    """An interpreter, allocated for one row until a request is larger."""

    def __init__(self, interpreter: Any) -> None:  # noqa: ANN401 - neither package has types
        """`interpreter` has its tensors allocated."""
        self._interpreter = interpreter
        self._runner: Any = None
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        self._inputs: dict[str, Any] = {one["name"]: one for one in inputs}
        self._outputs: dict[str, Any] = {one["name"]: one for one in outputs}
        self._take_signature(_places(inputs), _places(outputs))
        self._shapes = {name: tuple(int(size) for size in one["shape"]) for name, one in self._inputs.items()}

    def inputs(self) -> tuple[TensorSpec, ...]:
        """Raises BackendError where a datatype is none of the protocol's."""
        return tuple(_spec(name, details) for name, details in self._inputs.items())

    def outputs(self) -> tuple[TensorSpec, ...]:
        """As `inputs`."""
        return tuple(_spec(name, details) for name, details in self._outputs.items())

    def run(self, inputs: Mapping[str, Array], wanted: list[str]) -> dict[str, Array]:
        """Raises BackendError: bad-input for a shape that the graph does not take, run-failed."""
        try:
            if self._runner is not None:
                given = self._runner(**inputs)
                return {name: given[name] for name in wanted}
            self._resize(inputs)
        except (ValueError, RuntimeError) as error:
            self._shapes = {}  # whatever is allocated now: the next run says it anew
            raise BackendError("bad-input", f"the model refused its input: {_said(error)}") from error
        try:
            for name, array in inputs.items():
                self._interpreter.set_tensor(self._inputs[name]["index"], array)
            self._interpreter.invoke()
            return {name: self._interpreter.get_tensor(self._outputs[name]["index"]) for name in wanted}
        except (ValueError, RuntimeError) as error:
            raise BackendError("run-failed", f"the model refused to run: {_said(error)}") from error

    def _resize(self, inputs: Mapping[str, Array]) -> None:
        changed = {name: array.shape for name, array in inputs.items() if self._shapes.get(name) != array.shape}
        if not changed:
            return
        for name, shape in changed.items():
            details = self._inputs[name]
            if not _takes(_signature(details), shape):  # the interpreter's own check forgets what was free
                raise ValueError(f"{name}: expected shape {list(_signature(details))}, got {list(shape)}")
            self._interpreter.resize_tensor_input(details["index"], list(shape))
        self._interpreter.allocate_tensors()
        self._shapes.update(changed)

    def _take_signature(self, inputs: set[tuple[int, str]], outputs: set[tuple[int, str]]) -> None:
        """The names of the signature; a signature of another graph than the first is run by its own runner."""
        known = self._interpreter.get_signature_list()
        key = SIGNATURE if SIGNATURE in known else next(iter(known)) if len(known) == 1 else ""
        if not key:
            return
        runner = self._interpreter.get_signature_runner(key)
        self._inputs, self._outputs = runner.get_input_details(), runner.get_output_details()
        if _places(self._inputs.values()) != inputs or _places(self._outputs.values()) - outputs:
            self._runner = runner


def _places(details: Any) -> set[tuple[int, str]]:  # noqa: ANN401
    return {(one["index"], one["name"]) for one in details}


def _spec(name: str, details: Mapping[str, Any]) -> TensorSpec:
    dtype = np.dtype(details["dtype"])
    datatype = "BYTES" if dtype.kind in "SO" else _DATATYPES.get(dtype.name, "")
    if not datatype:
        text = f"expected one of the protocol's datatypes, got {dtype.name}"
        raise BackendError("load-failed", f"tensor {name}: {text}")
    return TensorSpec(name, datatype, _signature(details))


def _signature(details: Mapping[str, Any]) -> tuple[int, ...]:
    """-1 is a free size."""
    told = details["shape_signature"] if len(details["shape_signature"]) else details["shape"]
    return tuple(int(size) if size > 0 else -1 for size in told)


def _takes(signature: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(signature) != len(shape):
        return False
    return all(want in (-1, have) for want, have in zip(signature, shape, strict=True))


def _said(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:500]
