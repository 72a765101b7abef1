"""Builds this room for `composition`."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_hub.clock import Clock
from cloud_hub.configuration.configurations import Configurations
from cloud_hub.configuration.fitting import Fitting
from cloud_hub.configuration.viewing import Views
from cloud_hub.events import Events
from cloud_hub.rollouts.controller import Controller
from cloud_hub.store.engine import Store


@dataclass(frozen=True)
class Configuring:
    """What `Rooms` holds of it."""

    changes: Configurations
    views: Views


def configuring(store: Store, events: Events, rollouts: Controller, fitting: Fitting, clock: Clock) -> Configuring:
    return Configuring(Configurations(store, events, rollouts, fitting, clock), Views(store))
