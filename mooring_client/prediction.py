"""What a module answered."""

from __future__ import annotations

from typing import Any


class Prediction(dict[str, Any]):
    """Outputs by name: arrays, or `Tensor` where the inputs were. `id` names this prediction to the hub, when a label
    for it is known later; `version` is the module's.
    """

    __slots__ = ("id", "version")

    def __init__(self, id_: str, version: str) -> None:  # a dict is empty without its own __init__
        self.id = id_
        self.version = version
