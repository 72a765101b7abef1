"""Patches as people see them: over the API, as a table, and in what `mooring-hub doctor` says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from sqlalchemy import update

from cloud_hub.config import HubConfig
from cloud_hub.doctor import examine
from cloud_hub.operator.render_patches import patches as rendered
from cloud_hub.patch_settings import PatchSettings
from cloud_hub.patches import queue
from cloud_hub.patches.queue import Patch
from cloud_hub.patches.wishes import Wish
from cloud_hub.roles import Role
from cloud_hub.store.tables import patches
from support.fleets import World, open_world

SIZE = 10 * 2**20
BUILT = {"state": "built", "sha256": "c" * 64, "size": 2**20, "built_at": 5.0, "build_s": 1.5}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two patches of `digits`, the one that three devices wait for built, the other failed; and one of `iris`."""
    async with open_world(tmp_path) as world:
        wishes = [
            Wish("a" * 64, f"{base}" * 64, module, "model.onnx", base, 3, SIZE, 3 if base == 2 else 0, 4)
            for module, base in (("digits", 2), ("digits", 1), ("iris", 0))
        ]
        async with world.rooms.store.write() as connection:
            await queue.take_in(connection, wishes, 1.0)
            await connection.execute(update(patches).where(patches.c.base_version == 2).values(**BUILT))
            failed = {"state": "failed", "attempts": 3, "reason": "it was not built after 3600 s"}
            await connection.execute(update(patches).where(patches.c.base_version == 1).values(**failed))
        yield world


async def listed(world: World, query: str = "") -> list[Patch]:
    answer = await world.ask(await world.token(Role.VIEWER), "GET", f"/patches{query}")
    assert answer.status == 200, answer.text
    return msgspec.convert(answer.json, list[Patch])


async def test_the_api_lists_them_by_module(world: World) -> None:
    found = await listed(world, "?module=digits")
    assert [(patch.base_version, patch.state, patch.size) for patch in found] == [
        (2, "built", 2**20),
        (1, "failed", None),
    ]
    token = await world.token(Role.VIEWER, name="other")
    assert len((await world.ask(token, "GET", "/patches")).json) == 3
    assert (await world.ask(token, "GET", "/patches?limit=0")).status == 400
    assert (await world.ask("", "GET", "/patches")).status == 401


async def test_the_table_says_what_each_saves_and_why_one_is_not_there(world: World) -> None:
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(rendered(await listed(world)))
    text = captured.get()
    assert "1.0 MiB of 10.0 MiB" in text
    assert "saves 90%" in text
    assert "it was not built after 3600 s (attempt 3)" in text
    assert "1 built (1.0 MiB), 1 waiting; devices on their way save 27.0 MiB" in text


async def test_doctor_counts_them_and_names_one_that_failed(world: World) -> None:
    findings = await asyncio.to_thread(examine, world.rooms.paths)
    finding = next(finding for finding in findings if finding.subject == "patches")
    assert (finding.state, finding.text) == (
        "note",
        "1 built (1.0 MiB), 1 waiting, 1 failed, such as digits:3: it was not built after 3600 s",
    )


async def test_settings_of_patches_are_written_read_and_checked(tmp_path: Path) -> None:
    config = HubConfig(patches=PatchSettings(enabled=False, total_mib=7))
    config.write(tmp_path)
    assert HubConfig.load(tmp_path, {}) == config
    for wrong in ({"attempts": 0}, {"build_s": 0.0}, {"max_bytes": 1}, {"memory_mib": 1}, {"recent": -1}):
        with pytest.raises(ValueError, match=f"patches.{next(iter(wrong))}: expected"):
            PatchSettings(**wrong)
