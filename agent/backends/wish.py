"""What a stage, or else the device's profile, asks of a runtime: providers of ONNX Runtime or delegates of LiteRT."""

from __future__ import annotations

import msgspec

from modules.runtime import Provider


class Wish(msgspec.Struct, frozen=True):
    """What is asked for, in order; whether the CPU may take what is left; who says so, in words."""

    asked: tuple[Provider, ...]
    cpu: bool
    whose: str

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(provider.name for provider in self.asked)
