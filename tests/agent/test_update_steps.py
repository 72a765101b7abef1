"""Steps of the update by themselves, where a whole update would not show what matters."""

from __future__ import annotations

import shutil
import ssl
from typing import Any

from agent.config import AgentConfig, FetchLimits, LinkLimits, StatePaths
from agent.files import write_durably
from agent.installed import Installed, ModuleSet
from agent.link import Link
from agent.slots import Slots
from agent.transfer.fetch import Fetcher
from agent.update.steps import Steps
from firmware_profiles.profile import DeviceProfile
from modules.bundle import MAX_CHUNK_BYTES, Chunk, FileEntry, sha256_hex
from modules.manifest import Lineage, Manifest, Runtime, encode_manifest, manifest_digest

SIZE = 256 * MAX_CHUNK_BYTES
UNUSED: Any = None  # fetching asks neither the verifier nor the keeper


async def test_what_has_arrived_already_needs_no_room_again(state_dir: StatePaths) -> None:
    for folder in (state_dir.staging, state_dir.root / "incoming"):
        folder.mkdir(parents=True, exist_ok=True)
    chunk = Chunk(sha256_hex(bytes(MAX_CHUNK_BYTES)), MAX_CHUNK_BYTES)
    entry = FileEntry("weights.bin", SIZE, sha256_hex(bytes(SIZE)), (chunk,) * 256)
    manifest = encode_manifest(Manifest("m", 1, "pi", Lineage("m", 1), (), (), (entry,), Runtime(model="")))
    digest = manifest_digest(manifest)
    write_durably(state_dir.root / "incoming" / f"{digest}.json", manifest)
    with (state_dir.staging / entry.sha256).open("wb") as file:
        file.truncate(SIZE)  # whole, and takes no room in this test
    margin = shutil.disk_usage(state_dir.root).free - SIZE // 2
    limits = FetchLimits(disk_margin_bytes=margin)
    config = AgentConfig("cam-17", "https://hub:8443", "hub", 8883, DeviceProfile("pi", "aarch64"), fetch=limits)
    slots = Slots(state_dir.slots)
    fetcher = Fetcher(Link("cam-17", "hub", 8883, ssl.create_default_context, LinkLimits()), state_dir.staging, limits,
                      slots.find)  # fmt: skip
    steps = Steps(config, state_dir, UNUSED, fetcher, slots, UNUSED)
    await steps.fetch(ModuleSet(2, 2, (Installed("m", 1, digest, 1, "d"),)), ModuleSet(), lambda: None)
    assert (steps.done_bytes, steps.total_bytes) == (SIZE, SIZE)
    fetcher.close()
