"""Who may read the hub's metrics, and how fresh they are: the table `[metrics]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import msgspec


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """GET /metrics on the API's port, in Prometheus' text format.

    It asks for a token that may see every device, unless `open`: then anybody who reaches the port reads them. What is
    looked up in the database is at most `refresh_s` seconds old, however often it is asked for.
    """

    open: bool = False
    refresh_s: float = 15.0

    def __post_init__(self) -> None:
        if not self.refresh_s > 0:
            raise ValueError(f"metrics.refresh_s: expected a number above 0, got {self.refresh_s}")
