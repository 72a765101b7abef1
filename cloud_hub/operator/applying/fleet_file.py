"""What a fleet file may say. Pure; `comparing` holds it against a hub. Used by `mooring apply`.

Parts that the file does not name are left as they are, so that one file may be about groups and another about rollouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cloud_hub.configuration.document import Document
from cloud_hub.operator.documents import read_document
from cloud_hub.operator.errors import FileError
from cloud_hub.rollouts.new import NewRollout

FORMAT = 1


class DeclaredQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A saved query."""

    query: str
    description: str = ""


class DeclaredGroup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly these devices: by their ids, or all that a query means when the file is applied; one of the two."""

    devices: tuple[str, ...] | None = None
    query: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        if (self.devices is None) == (not self.query):
            raise ValueError("group: expected devices, or a query")


class DeclaredConfiguration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A module's whole configuration. `rollout` has fields of a new rollout, which brings what changes."""

    fleet: dict[str, Any] = {}  # whatever a configuration holds
    targets: tuple[Any, ...] = ()
    devices: dict[str, dict[str, Any]] = {}
    rollout: dict[str, Any] = {}

    @property
    def document(self) -> Document:
        said = {"fleet": self.fleet, "targets": self.targets, "devices": self.devices}
        return msgspec.convert(said, Document)


class DeclaredSampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the sampling policy of the devices that match `target` (all of them when empty)."""

    set: dict[str, Any]  # as in a sampling policy
    target: str = ""


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. `tags` are all tags of a device, `rollouts` what devices shall run, in order."""

    mooring: int
    queries: Mapping[str, DeclaredQuery | str] = {}
    groups: Mapping[str, DeclaredGroup] = {}
    tags: Mapping[str, dict[str, str]] = {}
    configurations: Mapping[str, DeclaredConfiguration] = {}
    sampling: Mapping[str, tuple[DeclaredSampling, ...]] = {}
    rollouts: tuple[NewRollout, ...] = ()

    def __post_init__(self) -> None:
        if self.mooring != FORMAT:
            raise ValueError(f"mooring: expected the format {FORMAT}, got {self.mooring}")
        for new in self.rollouts:
            if not new.version or new.candidate is not None or new.start:
                raise ValueError(f"rollouts: {new.module}: expected a version, no candidate and no `start`")

    def query(self, name: str) -> DeclaredQuery:
        """A query may stand as its text alone."""
        declared = self.queries[name]
        return DeclaredQuery(declared) if isinstance(declared, str) else declared


def read_fleet_file(path: Path) -> FleetFile:
    """YAML, JSON or TOML. Raises FileError naming the place that does not fit."""
    try:
        return msgspec.convert(read_document(path), FleetFile)
    except ValueError as error:  # msgspec's own is one
        raise FileError("fleet-file-invalid", f"{path}: {error}; nothing was changed") from error
