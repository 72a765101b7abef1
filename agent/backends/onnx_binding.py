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
    """`io` is what the session runs with. Made once, run often: making one costs more than a small model's run."""

    def __init__(
        self,
        session: ort.InferenceSession,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
    ) -> None:
        """Raises the runtime's own exceptions."""
        self._inputs = dict(inputs)
        self._outputs = dict(outputs)  # whose memory the binding points to
        self.io = session.io_binding()
        self._bind_inputs()
        for name, array in self._outputs.items():
            self.io.bind_output(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)

    def renew(self) -> None:
        """Before each run on an accelerator: its copy of the inputs is made when they are bound."""
        self._bind_inputs()

    def _bind_inputs(self) -> None:
        for name, array in self._inputs.items():
            self.io.bind_cpu_input(name, array)
