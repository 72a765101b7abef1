"""The settings of containers, a part of `agent.toml`. Called by `agent.config`."""

from __future__ import annotations

import msgspec


class ContainerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How modules of kind `container` run. `engine` is the address of a Docker engine (empty = no containers here).

    A module gets none of the engine's `networks` and none of the `devices` (paths such as /dev/video0) that are not
    named here, whatever its manifest asks for. One request to the engine has `call_s`, loading an image `load_s`, and a
    worker `begin_s` to come up in its container.
    """

    engine: str = "unix:///var/run/docker.sock"
    networks: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    call_s: float = 60.0
    load_s: float = 900.0
    begin_s: float = 60.0

    def __post_init__(self) -> None:
        if not min(self.call_s, self.load_s, self.begin_s) > 0:
            raise ValueError("containers: expected call_s, load_s and begin_s above 0")
