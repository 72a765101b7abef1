"""Where the agent's metrics are read: the table `[metrics]` of `agent.toml`. Used by `agent.config`."""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_PATH_CHARS: Final = 100  # of a Unix socket, see unix(7)
_PLACE: Final = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")
_UNIX: Final = "unix:"


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """GET /metrics of the agent as a whole, in Prometheus' text format, at `listen`: HOST:PORT, or unix: and a path.

    Nobody is asked who they are, so keep it to this machine (127.0.0.1:9464) or to a network that may know (empty =
    not offered).
    """

    listen: str = ""

    def __post_init__(self) -> None:
        if self.path:
            if not self.path.startswith("/") or len(self.path.encode()) > MAX_PATH_CHARS:
                raise ValueError(f"metrics.listen: expected an absolute path of at most {MAX_PATH_CHARS} bytes")
        elif self.listen:
            match = _PLACE.fullmatch(self.listen)
            if match is None or not 1 <= int(match["port"]) <= 65535:
                raise ValueError(f"metrics.listen: expected HOST:PORT or unix:/path, got {self.listen[:80]!r}")

    @property
    def path(self) -> str:
        """Of the Unix socket; empty where it is none."""
        return self.listen.removeprefix(_UNIX) if self.listen.startswith(_UNIX) else ""

    @property
    def place(self) -> tuple[str, int]:
        """Host and port; only where `listen` is one."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)
