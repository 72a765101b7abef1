"""A session bound to arrays of its caller's own: no copy of what goes in and out. Called by `onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.backends import Array

if TYPE_CHECKING:
    import onnxruntime as ort


def bindable(arrays: Mapping[str, Array], names: list[str], writing: bool) -> bool:
    """Whether these are all the tensors there are, each one piece of memory of plain numbers."""
    if sorted(arrays) != sorted(names):
        return False
    return all(
        array.dtype != object and array.flags.c_contiguous and (array.flags.writeable or not writing)
        for array in arrays.values()
    )


class Binding:
    """Made once, run often: making one costs more than a small model's run."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        on_cpu: bool,
    ) -> None:
        """Raises the runtime's own exceptions."""
        self._session = session
        self._inputs = dict(inputs)
        self._outputs = dict(outputs)  # whose memory the binding points to
        self._on_cpu = on_cpu
        self._binding = session.io_binding()
        self._bind_inputs()
        for name, array in self._outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)

    def run(self, options: ort.RunOptions) -> None:
        if not self._on_cpu:
            self._bind_inputs()  # an accelerator's copy is made when an array is bound
        self._session.run_with_iobinding(self._binding, options)

    def _bind_inputs(self) -> None:
        for name, array in self._inputs.items():
            self._binding.bind_cpu_input(name, array)
