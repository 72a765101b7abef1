"""Something that answers, for the child process; and an entry script, whose answers are declared. Called by `child`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from modules.tensors import TensorSpec


class Model(Protocol):
    """Something that answers: `recorded` are the outputs whose answers are read from the file instead of computed."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    recorded: tuple[TensorSpec, ...]
    fixed_rows: int  # 0: any number

    def answer(self, feeds: Mapping[str, Any]) -> dict[str, Any]: ...


class Declared:
    """An entry script, as its publisher describes it: the answers stand beside the inputs."""

    fixed_rows = 0

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs = inputs
        self.outputs = self.recorded = outputs

    def answer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return {spec.name: feeds[spec.name] for spec in self.outputs}
