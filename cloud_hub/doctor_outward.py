"""What `doctor` looks at before events can leave the hub: files that the settings name. Nothing is sent."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from cloud_hub.config import HubConfig
from cloud_hub.findings import Finding
from cloud_hub.outward.destinations import trusted
from cloud_hub.outward.mqtt import credentials
from cloud_hub.outward.settings import OutwardSettings

_SUBJECT = "events to others"


def events_outward(config: HubConfig) -> Finding:
    settings = config.outward
    try:
        trusted(settings.ca)
    except (OSError, ssl.SSLError) as error:
        return Finding(_SUBJECT, "problem", f"outward.ca {settings.ca}: {error}: webhooks get nothing")
    if settings.mqtt_broker:
        try:
            credentials(settings)
        except (OSError, ssl.SSLError) as error:
            return Finding(_SUBJECT, "problem", f"outward.mqtt_*: {error}: the broker gets nothing")
    if settings.log and not _writable(Path(settings.log)):
        return Finding(_SUBJECT, "problem", f"outward.log {settings.log}: cannot be written by this user")
    return Finding(_SUBJECT, "ok", _words(settings))


def _writable(path: Path) -> bool:
    """Files are put aside beside it, so the folder counts."""
    return os.access(path.parent, os.W_OK | os.X_OK) and (not path.exists() or os.access(path, os.W_OK))


def _words(settings: OutwardSettings) -> str:
    places = ["webhooks"]
    if settings.mqtt_topic:
        places.append(f"{settings.mqtt_topic} at {settings.mqtt_broker or 'the own broker'}")
    if settings.log:
        places.append(settings.log)
    loose = [name for name in ("private_addresses", "plain_http") if getattr(settings, name)]
    allowed = f"; webhooks may use {' and '.join(loose)}" if loose else ""
    return f"{', '.join(places)}{allowed}"
