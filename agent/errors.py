"""The errors of the agent: one base, a handful of families, a stable key in each.

Raised by every room of the agent; shown by the command line, counted and reported by `report`. What crosses to the
hub is key and text. Errors of floor 1 (`modules.errors`) stay what they are until a room here says what they mean.
"""

from __future__ import annotations


class AgentError(Exception):
    """Base of this package. `key` is stable and may be shown, counted and matched; the message is for people."""

    key = "agent-error"

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        if key:
            self.key = key


class ConfigError(AgentError):
    """`agent.toml` is missing, unreadable or has a field that does not fit. Keys: config-invalid, not-enrolled."""

    key = "config-invalid"


class StoreError(AgentError):
    """The agent's database cannot be opened, migrated or read. Keys: store, store-newer."""

    key = "store"


class LinkError(AgentError):
    """Family of everything that goes wrong between this device and the hub. Keys also: bad-answer, broker-refused."""

    key = "link"


class LinkDown(LinkError):
    """There is no connection, or it ended before the answer came. Being offline is normal: wait for the link."""

    key = "link-down"


class LinkTimeout(LinkError):
    """Connected, but the answer or the broker's acknowledgement did not come in time."""

    key = "link-timeout"


class NotAuthorised(LinkError):
    """The broker refused a publish or a subscription (MQTT 5 reason code 0x87)."""

    key = "not-authorised"


class Refused(LinkError):
    """The hub answered with a Refusal. Keys: not-found, bad-request, busy, not-allowed. `timestamp` as it came."""

    def __init__(self, message: str, key: str = "", timestamp: bytes | None = None) -> None:
        super().__init__(message, key)
        self.timestamp = timestamp


class TrustError(AgentError):
    """Verification refused what came, and what is installed stays. `key` says what it is.

    Attacks and faults of the hub: rollback, freeze, wrong-device, wrong-hardware, mix-and-match, older-release,
    bad-signature, length-or-hash, oversized, duplicate-module, delegations-in-director, not-in-image-repository,
    bad-metadata, agent-publisher. Not attacks: clock, unreachable, io.
    """

    @property
    def attack(self) -> bool:
        """Whether this is to be reported as a detected attack (or fault of the hub), not as being offline."""
        return self.key not in {"clock", "unreachable", "io"}


class FetchError(AgentError):
    """Files could not be fetched.

    Keys: disk-full, chunk-mismatch, file-mismatch, not-found, refused, stalled, offline, deadline, io.
    """


class PatchFailed(AgentError):
    """A file could not be made from a patch; it comes whole instead."""

    key = "patch"


class OutboxError(AgentError):
    """An item cannot be kept for sending. Keys: item-too-large, outbox-full."""


class EnrolError(AgentError):
    """Enrolment failed, nothing was written.

    Keys: already-enrolled, agent-running, bad-token, bad-device-id, bad-address, bad-request, ca-mismatch, unreachable,
    bad-answer, refused, io; and the hub's own, such as token-used, token-expired, token-unknown, device-exists.
    """


class RenewalError(AgentError):
    """The certificate was not renewed; the old one stays in use.

    Keys: unreachable, ca-mismatch, bad-address, bad-answer, refused, not-accepted; and the hub's own, such as
    certificate-expired, renewal-signature, renewal-too-soon, device-retired.
    """

    key = "renewal"


class UpdateError(AgentError):
    """An update cannot go on; the module that served before keeps serving. The raiser gives the key."""


class WorkerError(AgentError):
    """A module's worker process failed or did not answer. The raiser gives the key."""
