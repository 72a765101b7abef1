"""What a simulated fleet is like: its pace, its steps, and groups of devices that are far, broken, silent or lying.

Read from a TOML file, see docs/operate/sizing.md. Pure but for `load`. `place` says who belongs to which group: the
same for the same seed, so that a second run has the same broken devices.
"""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from cloud_hub.operator.errors import FileError

Files = Literal["all", "some", "none"]
Ending = Literal["verified", "failed", "rejected", "reverted", "silent"]
Step = Literal["fetching", "verifying", "staging", "trying"]
Lie = Literal["", "other-key", "unassigned", "replay", "counter"]


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far away a device is: one way takes `delay_ms`, `kib_per_s` go through (0: any number).

    A share `loss` of all messages comes later by a repetition of TCP's. Every `offline_every_s` on average the device
    is gone for `offline_s`, without a word (0: never).
    """

    delay_ms: float = 0.0
    kib_per_s: float = 0.0
    loss: float = 0.0
    offline_every_s: float = 0.0
    offline_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.delay_ms, self.kib_per_s, self.offline_every_s, self.offline_s) < 0 or not 0 <= self.loss < 1:
            raise ValueError("link: expected values from 0 on, and a loss below 1")

    @property
    def is_plain(self) -> bool:
        return not (self.delay_ms or self.kib_per_s or self.loss)


class Steps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a device works in each state, in seconds, give or take a half. `probation`: None is the module's own."""

    resolving: float = 0.3
    verifying: float = 0.3
    staging: float = 0.5
    trying: float = 2.0
    activating: float = 0.3
    probation: float | None = None


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A share (0 to 1) of the fleet that is otherwise. What is not said is as in the rest of the fleet.

    `ends` is how updates end: `failed` at `step`, the first `times` of them (0: all). `silent` takes an assignment and
    says nothing from then on. `clone`: a second connection with the same identity. `lie`: `other-key` signs reports
    with another key, `unassigned` claims to run what it was never told to, `replay` repeats an old report after each
    new one, `counter` counts in numbers that no database holds.
    """

    name: str
    share: float
    link: Link | None = None
    files: Files | None = None
    ends: Ending = "verified"
    step: Step = "trying"
    times: int = 0
    clone: bool = False
    lie: Lie = ""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"group {self.name}: expected a share above 0 and up to 1, got {self.share}")


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. Times in seconds.

    A report every `report_every_s`, a window of `rows` rows every `window_every_s` (0: none) from each module.
    `keepalive_s` and `session_s` are what agents ask the broker for. `connect_per_s` bounds how many devices begin to
    connect in a second; after a loss each waits by chance, up to `reconnect_s`. `files`: whether the bytes of modules
    are asked for as well, over MQTT (`some`: the first block of each file).
    """

    report_every_s: float = 300.0
    window_every_s: float = 300.0
    rows: int = 20
    keepalive_s: int = 30
    session_s: int = 86_400
    connect_per_s: float = 200.0
    reconnect_s: float = 60.0
    answer_s: float = 15.0
    poll_s: float = 900.0
    files: Files = "none"
    link: Link = Link()
    steps: Steps = Steps()
    groups: tuple[Group, ...] = ()
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("report_every_s", "connect_per_s", "reconnect_s", "answer_s", "poll_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.window_every_s < 0 or not 1 <= self.rows <= 10_000 or not 5 <= self.keepalive_s <= 600:
            raise ValueError("expected window_every_s from 0, rows from 1 to 10000 and keepalive_s from 5 to 600")
        if sum(group.share for group in self.groups) > 1 + 1e-9:
            raise ValueError("groups: expected shares that are 1 together at most")


def load(path: Path) -> Profile:
    """Raises FileError `profile-missing` or `profile-invalid`."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Profile)
    except OSError as error:
        raise FileError("profile-missing", f"{path}: {error.strerror}; nothing was started") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, ValueError) as error:
        raise FileError("profile-invalid", f"{path}: {error}; nothing was started") from error


def place(profile: Profile, count: int) -> list[Group | None]:
    """The group of each device, by its number; None for those that are like the rest."""
    placed: list[Group | None] = []
    for group in profile.groups:
        placed += [group] * min(round(group.share * count), count - len(placed))
    placed += [None] * (count - len(placed))
    random.Random(profile.seed).shuffle(placed)
    return placed
