"""The lower bound of trust: the highest versions ever verified, and when. One small file, written durably.

python-tuf keeps its own copies of what it verified, without fsync, in a folder that may be lost or damaged at any
time; so that folder is a cache to us, and what may never be accepted again stands here. Release counters are a second
bound, in the agent's store. Called by `agent.trust`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from agent.errors import TrustError
from agent.files import write_durably

log = logging.getLogger(__name__)

# A device without a battery-backed clock starts in the past; a clock set by NTP may go back a little.
CLOCK_TOLERANCE_S = 86_400.0


class Versions(msgspec.Struct, frozen=True):
    """Of one repository. `keys` are those that sign timestamps: new keys begin a new count (recovery from a thief who
    signed enormous versions), except for the root's, which goes on for ever.
    """

    root: int
    timestamp: int
    snapshot: int
    targets: int
    keys: tuple[str, ...]


class Floor(msgspec.Struct, frozen=True):
    """What `floor.json` holds. `time` is when a repository was last verified, in seconds since the epoch."""

    time: float = 0.0
    repositories: dict[str, Versions] = {}

    @classmethod
    def load(cls, path: Path) -> Floor:
        """None yet, or a damaged one, is the lowest: refusing for ever would need a visit to the device."""
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (OSError, msgspec.DecodeError, ValueError) as error:
            log.error("the record of verified versions is damaged and begins anew: path=%s error=%s", path, error)
            return cls()

    def save(self, path: Path) -> None:
        write_durably(path, msgspec.json.encode(self))

    def check_clock(self, now: float) -> None:
        """Raises TrustError (clock) when the clock is behind the last verification: expiry would mean nothing."""
        if now < self.time - CLOCK_TOLERANCE_S:
            raise TrustError(
                f"clock: expected at least {self.time:.0f}, the last time that metadata was verified, got {now:.0f}; "
                "set the clock, what is installed goes on",
                "clock",
            )

    def check(self, repository: str, seen: Versions) -> None:
        """Raises TrustError (rollback) when any version is lower than one that was verified before."""
        known = self.repositories.get(repository)
        if known is None:
            return
        roles = ("root",) if known.keys != seen.keys else ("root", "timestamp", "snapshot", "targets")
        for role in roles:
            expected, got = getattr(known, role), getattr(seen, role)
            if got < expected:
                raise TrustError(f"{repository} {role}: expected version {expected} or later, got {got}", "rollback")

    def raised(self, repository: str, seen: Versions, now: float) -> Floor:
        """With these versions, which were checked."""
        return Floor(max(self.time, now), {**self.repositories, repository: seen})
