"""What a rollout brings when it is no new main version for everybody: a candidate. Pure; a part of `plan`.

shadow              beside the main version on each device, fed the same inputs, answering nobody
arm, by request     beside the main version on each device, answering a share of the requests there
arm, by device      the main version of a share of the devices; the others keep theirs
"""

from __future__ import annotations

from typing import Literal

import msgspec

from modules.arms import check_share, chosen
from modules.errors import TargetError

Way = Literal["shadow", "arm"]
Split = Literal["request", "device"]


class Beside(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`share` is the part of the predictions, or of the devices, that `salt` draws (`modules.arms`)."""

    way: Way = "shadow"
    share: float = 1.0
    split: Split = "request"
    salt: str = ""

    def __post_init__(self) -> None:
        try:
            check_share(self.share, self.salt)
        except TargetError as error:
            raise ValueError(f"candidate: {error}") from error
        if self.way == "shadow" and self.split == "device":
            raise ValueError("candidate: expected a shadow to be split by request, got device: it answers nobody")

    @property
    def on_device(self) -> bool:
        """Whether it runs beside the main version, and not in its place."""
        return self.split == "request"

    def takes(self, device: str) -> bool:
        """Whether the device takes part."""
        return self.on_device or chosen(device, self.salt, self.share)
