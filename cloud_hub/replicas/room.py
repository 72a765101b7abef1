"""What one process of a hub has to do with the others, in one value. Built by `composition`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloud_hub.replicas.lease import Lease
from cloud_hub.replicas.rereading import Rereading
from cloud_hub.replicas.settings import PEER, ReplicasSettings
from cloud_hub.store.engine import Store

if TYPE_CHECKING:
    from cloud_hub.link import HubLink


@dataclass(frozen=True)
class Replica:
    """`lease` is the right to do what only one may do; `here` says that this process is there."""

    lease: Lease
    here: Lease
    rereading: Rereading

    @classmethod
    def of(cls, store: Store, settings: ReplicasSettings, lease: Lease, link: HubLink) -> Replica:
        here = Lease(store, settings, f"{PEER}{settings.name}")
        return cls(lease, here, Rereading(store, link.read_kept, lambda: link.session))
