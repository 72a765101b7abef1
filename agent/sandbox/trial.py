"""A worker's first steps and nothing else: confine, and say what was reached. `python -m agent.sandbox.trial ORDER`.

Started by `agent.sandbox.cage` to find out what this device can do.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from agent.sandbox.confine import confine
from agent.sandbox.level import level_of, separated


class Order(msgspec.Struct, frozen=True):
    """As in a worker's Start."""

    slot: str
    uid: int
    outside: dict[str, int]


def main() -> None:
    order = msgspec.json.decode(sys.argv[1], type=Order)
    root = os.geteuid() == 0
    apart = separated(order.outside)
    words = [*confine(Path(order.slot), order.uid, 0).split("+"), *apart]
    said = {"level": level_of(words, root).value, "words": "+".join(words)}
    sys.stdout.write(msgspec.json.encode(said).decode())


if __name__ == "__main__":
    main()
