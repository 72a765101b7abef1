"""What stands around a worker on this device: found out once, then made for every worker.

The agent asks at its start (`Cages.find`): is there bubblewrap, and does it work here; is our control group ours to
divide, or does systemd make scopes; and which level of confinement does a worker reach with that, tried by a worker's
own steps in a short-lived process. Called by `agent.service`, `agent.runtimes.process` and `agent.doctor`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from agent.config import ServingSettings
from agent.sandbox.bubblewrap import bubblewrap, systemd_scope
from agent.sandbox.cgroup import MEMBERSHIP, ROOT, Cgroup, CgroupError, Subtree
from agent.sandbox.environment import worker_environment
from agent.sandbox.level import namespaces
from agent.sandbox.room import NO_ROOM, Room
from firmware_profiles.confinement import Confinement
from modules.errors import MALFORMED
from modules.manifest import Resources

TRIAL_DEADLINE_S = 20.0
SYSTEMD = Path("/run/systemd/system")  # there while systemd is process 1
_TRIAL = (sys.executable, "-P", "-m", "agent.sandbox.trial")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cage:
    """Around one worker: what to write before its command, and its control group. `words` are for reports.

    `wrapper` is the part of the command that makes namespaces.
    """

    command: tuple[str, ...] = ()
    cgroup: Cgroup | None = None
    words: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()

    @property
    def limits_processors(self) -> bool:
        """Whether the kernel, or systemd, counts what its processes take of the processors."""
        return (self.cgroup is not None and self.cgroup.counts_processors()) or "systemd-scope" in self.words

    @property
    def forkable(self) -> bool:
        """Whether a process that is there already can be put into it: nobody can into a scope of systemd's."""
        return self.command == self.wrapper


NO_CAGE = Cage()


class Possible(msgspec.Struct, frozen=True):
    """The level a worker reaches here, what is done for it, and why it is not higher."""

    level: Confinement = Confinement.UNKNOWN
    words: str = ""
    why_not_higher: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cages:
    """`bwrap` and `systemd_run` are programs, empty where they are not there, not wanted or do not work."""

    bwrap: str = ""
    systemd_run: str = ""
    subtree: Subtree | None = None
    possible: Possible = field(default_factory=Possible)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    async def find(cls, settings: ServingSettings, uid: int, groups: bool = True) -> Cages:
        """`uid` is that of a worker (0: the agent's). Without `groups` control groups are left as they are."""
        reasons: list[str] = []
        if not settings.confine:
            return cls(possible=Possible(Confinement.NONE, "none", ("serving.confine is false",)))
        subtree, scope = _groups(reasons) if groups else (None, "")
        bwrap = _wanted_bwrap(settings, reasons)
        found = await _tried(bwrap, uid) if bwrap else None
        if isinstance(found, str):
            reasons.append(f"bubblewrap does not work here: {found}")
            bwrap = ""
        if found is None or isinstance(found, str):
            found = await _tried("", uid)
        if isinstance(found, str):
            return cls("", scope, subtree, Possible(Confinement.NONE, "none", (*reasons, found)))
        return cls(bwrap, scope, subtree, msgspec.structs.replace(found, why_not_higher=_why(found, uid, reasons)))

    def around(self, name: str, slot: Path, uid: int, resources: Resources, room: Room = NO_ROOM) -> Cage:
        """A limit that cannot be set is missing in the words, and the worker starts all the same."""
        command: tuple[str, ...] = ()
        wrapper: tuple[str, ...] = ()
        words: list[str] = []
        cgroup = self._cgroup(name, resources)
        if cgroup is not None:
            words.append("cgroup")
        elif self.systemd_run:
            unit = f"mooring-worker-{name}-{os.getpid()}-{next(self._numbers)}"
            command += systemd_scope(self.systemd_run, unit, resources)
            words.append("systemd-scope")
        if self.bwrap:
            wrapper = bubblewrap(self.bwrap, slot, uid, room=room)
            words.append("bubblewrap")
        return Cage((*command, *wrapper), cgroup, tuple(words), wrapper)

    def _cgroup(self, name: str, resources: Resources) -> Cgroup | None:
        if self.subtree is None:
            return None
        try:
            return self.subtree.make(f"{name}-{next(self._numbers)}", resources)
        except CgroupError as error:
            _logger.warning("worker without a control group", extra={"unit": name, "why": str(error)})
            return None


def _groups(reasons: list[str]) -> tuple[Subtree | None, str]:
    """Our own part of the tree, or else systemd-run; with the reason when it is neither."""
    try:
        return Subtree.open(ROOT, MEMBERSHIP), ""
    except CgroupError as error:
        scope = shutil.which("systemd-run") or ""
        if scope and SYSTEMD.is_dir() and os.geteuid() == 0:
            return None, scope
        reasons.append(f"no limits by control groups: {error}")
        return None, ""


def _wanted_bwrap(settings: ServingSettings, reasons: list[str]) -> str:
    if settings.isolation == "off":
        reasons.append("serving.isolation is off")
        return ""
    found = shutil.which("bwrap") or ""
    if not found:
        reasons.append("bubblewrap (bwrap) is not installed")
    return found


async def _tried(bwrap: str, uid: int) -> Possible | str:
    """What a worker reaches, or why none would start."""
    try:
        made = tempfile.TemporaryDirectory(prefix="mooring-trial-")
    except OSError as error:
        return f"no folder for a trial: {error}"
    with made as folder:
        slot = Path(folder)
        slot.chmod(0o755)
        order = msgspec.json.encode({"slot": folder, "uid": uid, "outside": namespaces()}).decode()
        wrapper = bubblewrap(bwrap, slot, uid) if bwrap else ()
        try:
            trial = await asyncio.create_subprocess_exec(
                *wrapper, *_TRIAL, order,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env=worker_environment(os.environ), cwd="/",
            )  # fmt: skip
        except OSError as error:
            return str(error)
        try:
            async with asyncio.timeout(TRIAL_DEADLINE_S):
                said, complained = await trial.communicate()
        except TimeoutError:
            return f"no answer within {TRIAL_DEADLINE_S:g} s"
        finally:
            if trial.returncode is None:
                trial.kill()
                await trial.wait()
    if trial.returncode != 0:
        lines = complained.decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {trial.returncode}"
    try:
        return msgspec.json.decode(said, type=Possible)
    except MALFORMED as error:
        return f"expected the level that was reached, got {said[:100]!r}: {error}"


def _why(found: Possible, uid: int, reasons: list[str]) -> tuple[str, ...]:
    words = {word.partition(":")[0] for word in found.words.split("+")}
    missing = {
        "landlock": "this kernel has no Landlock",
        "seccomp": "seccomp does not work here (is libseccomp there?)",
    }
    more = [text for word, text in missing.items() if word not in words]
    if os.geteuid() == 0 and not uid:
        more.append("the agent is root and has no other user to give away (serving.uid_first)")
    return (*more, *reasons)
