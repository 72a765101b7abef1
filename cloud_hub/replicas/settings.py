"""Several processes of one hub: the table `[replicas]` of `hub.toml`. Used by `config`."""

from __future__ import annotations

import re
from typing import Final

import msgspec

MAX_REPLICAS: Final = 64
PEER: Final = "replica:"  # leases of these names say which replicas are there
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
MIN_LEASE_S: Final = 3.0
MAX_LEASE_S: Final = 300.0


class ReplicasSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a hub of several processes on one PostgreSQL, one bucket and one broker.

    `name` is what this process is called among them; empty for a hub of one process, which everything else here does
    not concern. MOORING_HUB_REPLICAS_NAME in the environment stands above it. `names` are all that may be, which the
    Mosquitto that one of them may run lets in. What only one may do (rollouts, retention, renewals, retraining, what
    leaves the hub) is done by the holder of a lease of `lease_s` seconds: so long after its end another takes over.
    """

    name: str = ""
    names: tuple[str, ...] = ()
    lease_s: float = 15.0

    def __post_init__(self) -> None:
        if len(self.names) > MAX_REPLICAS:
            raise ValueError(f"replicas.names: expected at most {MAX_REPLICAS} names, got {len(self.names)}")
        for name in (*self.names, *((self.name,) if self.name else ())):
            if not _NAME.fullmatch(name):
                raise ValueError(f"replicas: expected names of a-z, 0-9 and -, at most 31, got {name[:80]!r}")
        if not MIN_LEASE_S <= self.lease_s <= MAX_LEASE_S:
            raise ValueError(f"replicas.lease_s: expected {MIN_LEASE_S} to {MAX_LEASE_S} seconds, got {self.lease_s}")
