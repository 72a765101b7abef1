"""Every route of the hub. A room's routes stand in the room's own file."""

from __future__ import annotations

from cloud_hub.api import (
    alerts,
    arms,
    asking,
    blobs,
    datasets,
    devices,
    exports,
    labels,
    long,
    models,
    modules,
    monitoring,
    offline,
    patches,
    people,
    privacy,
    retraining,
    rollouts,
    stream,
    system,
    trust,
    webhooks,
)
from cloud_hub.api.route import Route

EVERY_ROUTE: tuple[Route, ...] = (
    *system.ROUTES,
    *models.ROUTES,
    *modules.ROUTES,
    *patches.ROUTES,
    *blobs.ROUTES,
    *trust.ROUTES,
    *devices.ROUTES,
    *offline.ROUTES,
    *rollouts.ROUTES,
    *stream.ROUTES,
    *monitoring.ROUTES,
    *alerts.ROUTES,
    *arms.ROUTES,
    *asking.ROUTES,
    *exports.ROUTES,
    *labels.ROUTES,
    *long.ROUTES,
    *datasets.ROUTES,
    *retraining.ROUTES,
    *people.ROUTES,
    *privacy.ROUTES,
    *webhooks.ROUTES,
)
