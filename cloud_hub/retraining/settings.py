"""What a hub does of retraining by itself: the table `[retraining]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import msgspec


class RetrainingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """With `commands` the hub runs the training commands of plans itself, as its own user on its own machine: whoever
    may make a plan may then run any program there. Without it they wait for a runner (`mooring retrain work`). With
    `engine`, the address of a container engine such as unix:///run/docker.sock, commands run in the plan's image only.

    A runner that is not heard of for `silence_s` seconds has failed.
    """

    commands: bool = False
    engine: str = ""
    silence_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.silence_s > 0:
            raise ValueError(f"retraining.silence_s: expected a number above 0, got {self.silence_s}")
