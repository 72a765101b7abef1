"""How configurations stand: of a module, of one device, between two revisions. Reads only.

Called by `api.configuration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.agents import agent_version, older
from cloud_hub.configuration import book
from cloud_hub.configuration.book import Revision
from cloud_hub.configuration.configurations import require_module, under_way
from cloud_hub.configuration.document import ConfigDifference, Document, differences, resolve
from cloud_hub.configuration.resolving import assigned, matching
from cloud_hub.errors import NotFound
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices
from modules.configuration import config_digest
from modules.manifest import NEWER_AGENT
from modules.messages import decode_report


class DeviceConfiguration(msgspec.Struct, frozen=True):
    """What one device has. `layers` are the parts of the revision that stands which say something of this device, in
    their order; `resolved` is what they come to, `assigned` what the device is directed to have, and `applied` whether
    it reports that (null where it has not said).
    """

    device: str
    module: str
    revision: int
    layers: tuple[str, ...]
    resolved: dict[str, Any]
    assigned: dict[str, Any] | None
    assigned_sha256: str
    reported_sha256: str
    applied: bool | None


class ModuleConfiguration(msgspec.Struct, frozen=True):
    """`stands` is what devices get that are given the module now, `newest` the latest revision, which a rollout may
    not have brought yet; null where there is none. `under_way`: the rollout that carries a configuration now.
    """

    module: str
    stands: Revision | None
    newest: Revision | None
    under_way: str = ""


class Views:
    """All modules' configurations, as they stand."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def show(self, module: str) -> ModuleConfiguration:
        """Raises NotFound `module-not-found`."""
        async with self._store.read() as connection:
            await require_module(connection, module)
            stands = await book.standing(connection, module)
            newest = await book.history(connection, module, 1)
            standing = await book.get(connection, module, stands) if stands else None
            carrier = await under_way(connection, module)
        return ModuleConfiguration(module, standing, newest[0] if newest else None, carrier)

    async def revision(self, module: str, number: int) -> Revision:
        """Raises NotFound `module-not-found` or `configuration-not-found`."""
        async with self._store.read() as connection:
            await require_module(connection, module)
            return await book.get(connection, module, number)

    async def history(self, module: str, limit: int, before: int = 0) -> list[Revision]:
        """Newest first. Raises NotFound `module-not-found`."""
        async with self._store.read() as connection:
            await require_module(connection, module)
            return await book.history(connection, module, limit, before)

    async def diff(self, module: str, before: int, after: int) -> list[ConfigDifference]:
        """Between two revisions (0: nothing). Raises NotFound `module-not-found` or `configuration-not-found`."""
        async with self._store.read() as connection:
            await require_module(connection, module)
            old = await book.document(connection, module, before)
            return differences(old, await book.document(connection, module, after))

    async def of_device(self, module: str, device: str) -> DeviceConfiguration:
        """Raises NotFound `module-not-found` or `device-not-found`."""
        async with self._store.read() as connection:
            await require_module(connection, module)
            revision = await book.standing(connection, module)
            document = await book.document(connection, module, revision)
            numbers = (await matching(connection, document, [device])).get(device)
            if numbers is None:
                raise NotFound("device-not-found", f"no device {device[:63]}", device=device[:63])
            directed = (await assigned(connection, module, [device])).get(device)
            reported = await _reported(connection, module, device)
        wanted = "" if directed is None else config_digest(directed)
        return DeviceConfiguration(
            device,
            module,
            revision,
            _layers(document, numbers, device),
            resolve(document, numbers, device),
            directed,
            wanted,
            reported or "",
            None if reported is None or directed is None else reported == wanted,
        )


async def _reported(connection: AsyncConnection, module: str, device: str) -> str | None:
    """The digest that the device reports; None where it has not said."""
    report = (await connection.execute(select(devices.c.report).where(devices.c.id == device))).scalar_one_or_none()
    if report is None or older(agent_version(report), NEWER_AGENT):
        return None
    held = [one for one in decode_report(report).modules if one.name == module and not one.candidate]
    return held[0].config_sha256 if held else None


def _layers(document: Document, numbers: Sequence[int], device: str) -> tuple[str, ...]:
    said = ["fleet"] if document.fleet else []
    said += [f"target {document.targets[number].target}" for number in numbers]
    return (*said, f"device {device}") if document.own(device) is not None else tuple(said)
