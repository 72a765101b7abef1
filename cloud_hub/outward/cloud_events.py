"""An event of the hub as a CloudEvent 1.0 in the structured JSON format. Pure.

Source: CloudEvents 1.0.2, core specification and JSON event format; the extension `sequence` is the one documented
there. `type` is `io.mooring.` and the event's kind; `id` is the event's number and the beginning of its hash in the
audit trail, so it is the same each time the event is sent, and another one where a hub that was restored from a
backup counts the same number again. Called by `webhooks` and `sinks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from cloud_hub.chain import Event

MEDIA_TYPE: Final = "application/cloudevents+json"
TYPE_PREFIX: Final = "io.mooring."
MAX_BYTES: Final = 256 * 1024
_MODULE_FAMILIES: Final = ("model.", "module.")


class CloudEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """The attributes of the core specification, and of ours what one filters by. `data` is the event's details."""

    id: str
    source: str
    type: str
    time: str
    sequence: str  # of fixed width, so that its order as text is the order of the events
    actor: str
    data: Mapping[str, Any]
    # No defaults below that JSON would leave out although the specification asks for them.
    specversion: str
    datacontenttype: str
    subject: str = ""
    module: str = ""
    severity: str = ""


def cloud_event(event: Event, source: str) -> CloudEvent:
    """`source` is the hub's address."""
    details = event.details
    return CloudEvent(
        id=f"{event.id}-{event.hash[:16]}",
        source=source,
        type=f"{TYPE_PREFIX}{event.kind}",
        time=_rfc3339(event.at),
        sequence=f"{event.id:020d}",
        actor=event.actor,
        data=details,
        specversion="1.0",
        datacontenttype="application/json",
        subject=event.subject,
        module=module_of(event),
        severity=_word(details.get("severity")),
    )


def ping(source: str, webhook: str, number: str, at: float, actor: str) -> CloudEvent:
    """What `mooring webhooks test` sends: no event of the audit trail, and so without a place in the sequence."""
    return CloudEvent(
        id=f"ping-{number}",
        source=source,
        type=f"{TYPE_PREFIX}webhook.ping",
        time=_rfc3339(at),
        sequence="0" * 20,
        actor=actor,
        data={"webhook": webhook},
        specversion="1.0",
        datacontenttype="application/json",
        subject=webhook,
    )


def encode(event: CloudEvent) -> bytes:
    """JSON of at most MAX_BYTES: details that are longer are left out, and `truncated` says so."""
    body = msgspec.json.encode(event)
    if len(body) <= MAX_BYTES:
        return body
    return msgspec.json.encode(msgspec.structs.replace(event, data={"truncated": True, "bytes": len(body)}))


def module_of(event: Event) -> str:
    """The module or model that the event is about; empty where it is about none."""
    named = _word(event.details.get("module"))
    if named:
        return named
    if event.kind.startswith(_MODULE_FAMILIES):
        return event.subject.partition(":")[0]
    return ""


def _word(value: object) -> str:
    return value[:200] if isinstance(value, str) else ""


def _rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
