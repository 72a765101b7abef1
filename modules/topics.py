"""Every MQTT topic of Mooring: one type builds them and parses them. No f-string topics elsewhere.

>>> str(Topic("cam-17", "up", "window"))
'mooring/1/cam-17/up/window'
>>> Topic.parse("mooring/1/cam-17/up/window")
Topic(device='cam-17', direction='up', channel='window')
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from modules.errors import TargetError, TopicError
from modules.targets import check_device_id

PROTOCOL = 1
Up = Literal["state", "presence", "window", "sample", "event", "blob", "get"]
Down = Literal["desired", "data", "command", "ack"]
_CHANNELS = {"up": frozenset(get_args(Up)), "down": frozenset(get_args(Down))}


class Topic(msgspec.Struct, frozen=True):
    """`mooring/1/<device>/<up|down>/<channel>`."""

    device: str
    direction: Literal["up", "down"]
    channel: str

    def __str__(self) -> str:
        return f"mooring/{PROTOCOL}/{self.device}/{self.direction}/{self.channel}"

    @classmethod
    def parse(cls, text: str) -> Topic:
        """Raises TopicError for another version, an id that no certificate can hold, or an unknown channel."""
        parts = text.split("/")
        if len(parts) != 5 or parts[0] != "mooring" or parts[1] != str(PROTOCOL):
            raise TopicError(f"topic: expected mooring/{PROTOCOL}/DEVICE/DIRECTION/CHANNEL, got {text[:120]!r}")
        device, direction, channel = parts[2:]
        if channel not in _CHANNELS.get(direction, ()):
            raise TopicError(f"topic: expected a known direction and channel, got {direction[:40]}/{channel[:40]}")
        try:
            check_device_id(device)
        except TargetError as error:
            raise TopicError(f"topic: {error}") from error
        return cls(device, "up" if direction == "up" else "down", channel)


def up(device: str, channel: Up) -> str:
    """A topic on which the device speaks."""
    return str(Topic(device, "up", channel))


def down(device: str, channel: Down) -> str:
    """A topic on which the hub speaks to the device."""
    return str(Topic(device, "down", channel))


def all_up(channel: Up) -> str:
    """The hub's subscription to one channel of every device."""
    return f"mooring/{PROTOCOL}/+/up/{channel}"


def all_down(device: str) -> str:
    """The device's subscription to everything the hub says to it."""
    return f"mooring/{PROTOCOL}/{device}/down/+"
