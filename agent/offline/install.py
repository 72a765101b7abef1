"""Takes requests to install from a folder, and follows the update that comes of each until it has ended.

The folder is asked in the place of the hub, by the same verifier, fetcher and update machine. One unit of the
supervisor; rung by the command through a socket in the state directory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agent.errors import LinkError, StoreError, TrustError
from agent.installed import changes
from agent.offline.folder import Folder, FolderError
from agent.offline.request import FOLDER, RING, Letterbox, Outcome, OutcomeState, Request, short
from agent.offline.source import FolderSource
from agent.trust import OUTDATED, Desired, Verifier
from agent.update.attacks import Attacks
from agent.update.bell import Bell
from agent.update.record import Ledger, Record
from agent.update.states import State
from agent.update.steps import to_set

LOOK_S = 0.5
IDLE_S = 30.0  # without a step, and without a reason for it
MISTAKES = OUTDATED | {"older-release"}  # an old folder is no attack
# What another attempt from the same folder would meet again.
LASTING = frozenset({"chunk-mismatch", "file-mismatch", "not-found", "refused"})

_logger = logging.getLogger(__name__)


class Installer:
    """`open` before the update machine runs, then `run`. `reachable` is set while there is a hub or a folder to ask.

    `held(digest)` says whether a file is on this device already.
    """

    def __init__(
        self,
        device: str,
        state: Path,
        source: FolderSource,
        verifier: Verifier,
        ledger: Ledger,
        bell: Bell,
        attacks: Attacks,
        connected: asyncio.Event,
        reachable: asyncio.Event,
        held: Callable[[str], bool],
    ) -> None:
        self._device, self._state, self._box = device, state, Letterbox(state)
        self._source, self._verifier = source, verifier
        self._ledger, self._bell, self._attacks = ledger, bell, attacks
        self._connected, self._reachable, self._held = connected, reachable, held

    def open(self) -> None:
        """Takes up a folder that was installed from when this device lost its power."""
        request = self._next()
        if request is not None:
            self._use(Folder(Path(request.folder)))

    def reach(self) -> None:
        """The link came or went."""
        if self._connected.is_set() or self._source.folder is not None:
            self._reachable.set()
        else:
            self._reachable.clear()

    async def run(self) -> None:
        """Until cancelled; a request under way then stays for the next start."""
        self._box.make()
        with _ring(self._state / FOLDER) as rung:
            while True:
                rung.clear()
                request = self._next()
                if request is None:
                    await rung.wait()
                else:
                    await self._install(request)

    def close(self) -> None:
        self._source.close()

    def _next(self) -> Request | None:
        try:
            return self._box.request()
        except StoreError as error:
            _logger.warning("a request to install cannot be read and is forgotten", extra={"why": str(error)})
            self._box.forget("")
            return None

    def _use(self, folder: Folder | None) -> None:
        self._source.folder = folder
        self._verifier.folder = None if folder is None else self._source
        self.reach()

    async def _install(self, request: Request) -> None:
        outcome = Outcome(request.id, request.folder, "verifying")
        _logger.info("installing from a folder", extra={"folder": request.folder})
        self._use(Folder(Path(request.folder)))
        resumed = self._was_installing(request)
        try:
            self._tell(outcome)
            outcome = await self._through(outcome)
            if resumed and outcome.state == "nothing-new":  # the update ended before anybody looked here
                outcome = _ended(outcome, "installed", "", "")
        except (FolderError, LinkError, StoreError) as error:
            outcome = _ended(outcome, "refused", error.key, str(error))
        except TrustError as error:
            outcome = await self._refused(outcome, error)
        finally:
            self._use(None)
        self._tell(outcome)
        _logger.info("installation ended", extra={"state": outcome.state, "key": outcome.key, "why": outcome.text})
        self._bell.ask()  # the hub may have rung meanwhile

    def _was_installing(self, request: Request) -> bool:
        """Whether an agent that lost its power had begun with it."""
        with suppress(StoreError):
            known = self._box.outcome()
            return known is not None and known.id == request.id and known.state == "installing"
        return False

    async def _through(self, outcome: Outcome) -> Outcome:
        """Raises FolderError, TrustError, LinkError, StoreError while it is verified."""
        note = await self._source.look(lambda folder: folder.check(self._device))
        try:
            desired = await self._verifier.refresh(await self._ledger.counters())
        except TrustError as error:
            if error.key == "freeze":
                until = datetime.fromtimestamp(note.valid_until, UTC)
                text = f"{outcome.folder}: was good until {until:%Y-%m-%d %H:%M} UTC; export it again: {error}"
                raise FolderError(text, "folder-expired") from error
            raise
        names = tuple(f"{module.name} {module.version}" for module in desired.modules)
        outcome = msgspec.structs.replace(outcome, director_version=desired.director_version, modules=names)
        between = changes(self._ledger.current, to_set(desired))
        if between.same and between.settled:
            return _ended(outcome, "nothing-new", "", "this device runs what the folder brings")
        await self._source.look(lambda folder: self._check_files(folder, desired))
        outcome = msgspec.structs.replace(outcome, state="installing")
        self._tell(outcome)
        return await self._follow(outcome)

    def _check_files(self, folder: Folder, desired: Desired) -> None:
        """Everything that is new is there, in its size. What it contains is seen while it is fetched."""
        here = self._ledger.current.digests
        for module in desired.modules:
            for entry in () if module.manifest_sha256 in here else module.manifest.files:
                if self._held(entry.sha256):
                    continue
                size = folder.blob_size(entry.sha256)
                if size != entry.size:
                    text = f"{folder.path}: {entry.path} of {module.name}: expected {entry.size} bytes, got {size}"
                    raise FolderError(text, "file-missing")

    async def _refused(self, outcome: Outcome, error: TrustError) -> Outcome:
        if error.attack and error.key not in MISTAKES:
            with suppress(StoreError):
                await self._attacks.add(error.key, f"folder {outcome.folder}: {error}")
        text = str(error)
        if error.key in MISTAKES:
            text = f"{outcome.folder} is older than what this device has verified; export it again: {error}"
        return _ended(outcome, "refused", error.key, text)

    async def _follow(self, outcome: Outcome) -> Outcome:
        if not self._under_way(outcome.director_version):
            final = self._ended_before(outcome)
            if final is not None:
                return final
            self._bell.ask()
        still = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            final = await self._final(outcome)
            if final is not None:
                return final
            record = self._ledger.record
            idle = record.state is State.IDLE and not self._bell.asked and not record.reason_key
            still = still + LOOK_S if idle else 0.0
            if still > IDLE_S:
                return _ended(outcome, "failed", "not-taken", "the update machine did not take up what was verified")

    def _under_way(self, version: int) -> bool:
        record = self._ledger.record
        return record.state not in (State.IDLE, State.FAILED, State.REJECTED) and record.about_version == version

    def _ended_before(self, outcome: Outcome) -> Outcome | None:
        """This version has had its final word on this device."""
        record = self._ledger.record
        if not (record.ended and record.reason_key) or record.refused:
            return None
        return _of_record(outcome, record) if record.director_version == outcome.director_version else None

    async def _final(self, outcome: Outcome) -> Outcome | None:
        record, version = self._ledger.record, self._ledger.current.director_version
        if record.state is not State.IDLE or self._bell.asked:
            return None
        if version == outcome.director_version:
            return _ended(outcome, "installed", "", "")
        if version > outcome.director_version:
            return _ended(
                outcome, "failed", "superseded", f"the hub wanted something newer: director version {version}"
            )
        about = record.about_version == outcome.director_version
        if about and record.ended:
            return _of_record(outcome, record)
        try:
            await self._source.look(lambda folder: folder.note())
        except (FolderError, LinkError) as error:
            text = f"{error}; what has arrived is kept: with the folder at hand, run the same command again"
            return _ended(outcome, "interrupted", error.key, text)
        if about and record.reason_key in LASTING and not self._connected.is_set():
            return _of_record(outcome, record)
        return None

    def _tell(self, outcome: Outcome) -> None:
        try:
            self._box.tell(outcome)
        except OSError as error:
            _logger.warning("the outcome of an installation cannot be written", extra={"why": str(error)})


def _ended(outcome: Outcome, state: OutcomeState, key: str, text: str) -> Outcome:
    return msgspec.structs.replace(outcome, state=state, key=key, text=text)


def _of_record(outcome: Outcome, record: Record) -> Outcome:
    """How the update ended, as its record says."""
    text = f"{'reverted: ' if record.reverted else ''}{record.reason}"
    return _ended(outcome, "failed", record.reason_key, text)


@contextmanager
def _ring(folder: Path) -> Iterator[asyncio.Event]:
    """Set whenever something comes over the socket `ring` in the folder. Raises OSError."""
    rung, loop = asyncio.Event(), asyncio.get_running_loop()
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def heard() -> None:
        with suppress(BlockingIOError):
            while bell.recv(64):
                rung.set()

    try:
        with suppress(FileNotFoundError):
            os.unlink(RING, dir_fd=handle)
        bell.bind(short(handle))
        os.chmod(RING, 0o600, dir_fd=handle)
        loop.add_reader(bell, heard)
        yield rung
    finally:
        loop.remove_reader(bell)
        bell.close()
        os.close(handle)
