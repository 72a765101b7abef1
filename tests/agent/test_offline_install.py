"""`mooring-agent install` on real agents without a hub: what it installs, what it refuses, and any cut in between."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import AgentConfig, StatePaths, UpdateLimits
from agent.offline.request import Letterbox
from agent.store import AgentStore
from modules.offline import NOTE_FILE
from support.agents import AgentProcess
from support.built import Built, build
from support.certificates import make_ca, make_client
from support.edge import SERVING
from support.predict import predict, served_version
from support.repository import World
from support.stick import write_stick
from support.waiting import until

ONE, TWO = build(version=1), build(version=2)
DEADLINE_S = 90.0
QUICK = UpdateLimits(retry_first_s=0.05, retry_ceiling_s=0.2, max_attempts=3)


@dataclass
class Said:
    """How the command ended."""

    status: int
    out: str
    err: str

    @property
    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


class Site:
    """A device without a network, the stick that is brought to it, and who signs what is on it."""

    def __init__(self, paths: StatePaths, stick: Path) -> None:
        self.paths, self.stick, self.agent = paths, stick, AgentProcess(paths)
        self.world = World()
        self.world.write_roots(paths.roots)
        self.counter = 0

    def bring(self, module: Built, *, counter: int = 0) -> Path:
        """A fresh export with exactly this module."""
        self.counter = counter or self.counter + 1
        self.world.director.targets.signed.targets.clear()
        self.world.assign(self.world.add(module.manifest, module.files, self.counter))
        for repo in (self.world.image, self.world.director):
            repo.timestamp.signed.expires = repo.expires
        self.world.publish()
        shutil.rmtree(self.stick, ignore_errors=True)
        return write_stick(self.world, self.stick)

    async def install(self, *extra: str, folder: Path | None = None, crash_at: str = "") -> Said:
        process = await self.begin(*extra, folder=folder, crash_at=crash_at)
        async with asyncio.timeout(DEADLINE_S):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Said(process.returncode, out.decode(), err.decode())

    async def begin(self, *extra: str, folder: Path | None = None, crash_at: str = "") -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "agent.cli", "install", str(folder or self.stick), "--state", str(self.paths.root),
            *extra, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "MOORING_CRASH_AT": crash_at},
        )  # fmt: skip

    async def serves(self, version: int) -> None:
        """The agent that runs serves it."""
        address = await self.agent.serving()
        assert await served_version(address) == version
        assert await predict(address)

    async def started(self, crash_at: str = "") -> None:
        await self.agent.start(crash_at)
        await self.agent.until(lambda: self.agent.status() is not None, "a status")
        await until(lambda: (self.paths.root / "install" / "ring").exists(), "the ring")

    def outcome(self, state: str) -> Callable[[], bool]:
        def so() -> bool:
            found = Letterbox(self.paths.root).outcome()
            return found is not None and found.state == state

        return so


@pytest.fixture
async def site(agent_config: AgentConfig, state_dir: StatePaths, tmp_path: Path) -> AsyncIterator[Site]:
    make_client(make_ca("devices"), agent_config.device).write(state_dir.identity, "device")
    state_dir.server_ca.write_text(make_ca("server").pem)
    config = msgspec.structs.replace(agent_config, serving=SERVING, update=QUICK)
    state_dir.config.write_text(config.to_toml())
    site = Site(state_dir, tmp_path / "stick")
    yield site
    await site.agent.kill()


def spoil(path: Path, at: int = 10) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


async def test_a_device_that_was_never_online_installs_without_an_agent_running_and_serves_at_the_next_start(
    site: Site,
) -> None:
    site.bring(ONE)
    said = await site.install("--json")
    assert said.status == 0, said.err
    assert (said.outcome["state"], said.outcome["modules"]) == ("installed", ["iris 1"])
    await site.started()
    await site.serves(1)


async def test_an_agent_that_runs_takes_the_folder_over_and_hands_over_to_the_new_module(site: Site) -> None:
    await site.started()
    site.bring(ONE)
    said = await site.install()
    assert (said.status, said.out) == (0, "installed: iris 1 (director version 3)\n"), said.err
    await site.serves(1)
    site.bring(TWO)
    assert (await site.install()).status == 0
    await site.agent.until(lambda: served(site.agent, 2), "version 2 to serve")
    again = await site.install("--json")
    assert (again.status, again.outcome["state"]) == (0, "nothing-new")


def served(agent: AgentProcess, version: int) -> bool:
    status = agent.status()
    return status is not None and any((m.version, m.state) == (version, "serving") for m in status.report.modules)


def new_file(site: Site) -> Path:
    """Of version 2, which the device does not have."""
    return site.stick / "blobs" / max(set(TWO.blobs) - set(ONE.blobs), key=lambda digest: len(TWO.blobs[digest]))


def away(site: Site) -> None:
    shutil.rmtree(site.stick)


def a_file(site: Site) -> None:
    shutil.rmtree(site.stick)
    site.stick.write_text("x")


def no_export(site: Site) -> None:
    (site.stick / NOTE_FILE).unlink()


def unfinished(site: Site) -> None:
    write_stick(site.world, site.stick, complete=False)


def of_another(site: Site) -> None:
    note = json.loads((site.stick / NOTE_FILE).read_text())
    (site.stick / NOTE_FILE).write_text(json.dumps({**note, "devices": ["cam-99"]}))


def expired(site: Site) -> None:
    past = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    for repo in (site.world.image, site.world.director):
        repo.timestamp.signed.expires = past
    site.world.publish()
    write_stick(site.world, site.stick)


def metadata_spoilt(site: Site) -> None:
    spoil(site.stick / "director/cam-17/targets.json", 60)


def file_missing(site: Site) -> None:
    new_file(site).unlink()


def file_cut(site: Site) -> None:
    os.truncate(new_file(site), 100)


def file_spoilt(site: Site) -> None:
    spoil(new_file(site), 1500)  # in a chunk that version 1 does not have


# What is wrong with it, the key of the agent's refusal (none where the command sees it first), and words.
BAD_FOLDERS: list[tuple[Callable[[Site], None], str, str]] = [
    (away, "", "is not there"),
    (a_file, "", "got a file"),
    (no_export, "", "written by `mooring device export`"),
    (unfinished, "", "was not finished"),
    (of_another, "", "expected an export for cam-17, got one for cam-99"),
    (expired, "folder-expired", "export it again"),
    (metadata_spoilt, "", "targets.json"),
    (file_missing, "file-missing", "is missing"),
    (file_cut, "file-missing", "bytes, got 100"),
    (file_spoilt, "chunk-mismatch", "chunk"),
]


async def test_every_bad_folder_is_refused_in_words_and_changes_nothing(site: Site) -> None:
    site.bring(ONE)
    assert (await site.install()).status == 0
    await site.started()
    for break_it, key, words in BAD_FOLDERS:
        name = break_it.__name__
        site.bring(TWO)
        break_it(site)
        said = await site.install("--json")
        assert said.status == 1, name
        text = said.err + said.out
        assert words in text, f"{name}: {text}"
        if said.out:
            assert key in ("", said.outcome["key"]), f"{name}: {said.outcome}"
        await site.serves(1)
        shutil.rmtree(site.stick, ignore_errors=True)
        site.stick.unlink(missing_ok=True)
    site.bring(TWO)
    assert (await site.install()).status == 0, "a good one is taken after all of them"


async def test_an_older_folder_is_refused_by_version_and_a_newer_one_with_an_older_release_by_its_counter(
    site: Site, tmp_path: Path
) -> None:
    old = site.bring(ONE).rename(tmp_path / "old")
    site.bring(TWO)
    assert (await site.install()).status == 0
    said = await site.install("--json", folder=old)
    assert (said.status, said.outcome["key"]) == (1, "rollback")
    assert "older than what this device has verified" in said.outcome["text"]
    site.bring(ONE, counter=1)
    said = await site.install("--json")
    assert (said.status, said.outcome["key"]) == (1, "older-release")
    async with AgentStore(site.paths.database) as store:
        assert (await store.counters())["iris"] == 2


async def test_a_folder_of_another_hub_is_an_attack_and_is_told(site: Site) -> None:
    await site.started()
    write_stick(World(), site.stick)
    said = await site.install("--json")
    assert (said.status, said.outcome["state"]) == (1, "refused")
    status = site.agent.status()
    assert said.outcome["key"] == "bad-signature"
    await site.agent.until(lambda: bool((s := site.agent.status()) and s.report.attacks), "the attack in the report")
    assert status is not None


@pytest.mark.parametrize("crash_at", ["resolving:after", "staging:after", "probation:before"])
async def test_a_power_cut_during_it_is_made_good_at_the_next_start(site: Site, crash_at: str) -> None:
    site.bring(ONE)
    await site.started(crash_at)
    asking = await site.begin("--json")
    assert await site.agent.exit_code(DEADLINE_S) < 0
    await site.started()
    async with asyncio.timeout(DEADLINE_S):
        out, err = await asking.communicate()
    assert (asking.returncode, json.loads(out)["state"]) == (0, "installed"), err
    await site.serves(1)


async def test_a_stick_pulled_out_while_it_is_copied_is_said_and_put_back_goes_on(site: Site) -> None:
    site.bring(ONE)
    await site.started("fetching:before")
    asking = await site.begin("--json")
    assert await site.agent.exit_code(DEADLINE_S) < 0
    away = site.stick.rename(site.stick.with_name("pocket"))
    await site.started()
    async with asyncio.timeout(DEADLINE_S):
        out, _ = await asking.communicate()
    assert asking.returncode == 1
    assert "pulled out" in json.loads(out)["text"]
    away.rename(site.stick)
    said = await site.install("--json")
    assert (said.status, said.outcome["state"]) == (0, "installed"), said.err
    await site.serves(1)


async def test_ctrl_c_leaves_the_update_to_the_agent(site: Site) -> None:
    site.bring(ONE)
    await site.started()
    asking = await site.begin()
    await until(lambda: Letterbox(site.paths.root).outcome() is not None, "the agent to have it")
    asking.send_signal(2)
    async with asyncio.timeout(DEADLINE_S):
        _, err = await asking.communicate()
    assert asking.returncode in (130, 0)
    if asking.returncode == 130:
        assert b"the agent goes on" in err
    await site.agent.until(site.outcome("installed"), "the installation to end")
    await site.serves(1)


async def test_a_device_that_is_not_enrolled_says_so(site: Site, tmp_path: Path) -> None:
    site.bring(ONE)
    site.paths.config.unlink()
    said = await site.install()
    assert (said.status, "not enrolled yet" in said.err) == (1, True)
