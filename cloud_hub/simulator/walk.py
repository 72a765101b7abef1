"""One update of a simulated device, as a script without sockets or clock: it yields what it needs and gets the answer.

The questions are those of an agent: the director's root and timestamp, snapshot, targets; then the image repository's,
the manifest, the offers, and the files as far as the profile says. The states are those of `agent.update.states`.
`device` performs it: answers an `Ask`, waits a `Pause`, reports an `Enter`. A question that stays unanswered is thrown
in as `Unanswered`, and the update is left for another time, as an agent would.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from cloud_hub.simulator.facts import Facts, Untrusted, check_bytes, versions
from cloud_hub.simulator.profile import Files, Group, Step, Steps
from cloud_hub.simulator.state import IDLE, DeviceState
from cloud_hub.simulator.trust import DirectorSet, Trust, Wanted
from modules.configuration import config_digest
from modules.manifest import Manifest, decode_manifest
from modules.messages import Answer, Get, ModuleReport, Offered, Offers, Refusal, Repository, UpdateReport, UpdateState
from modules.targets import CANDIDATES

BLOCK_BYTES = 256 * 1024
MAX_OFFERED = 256
REASON = "simulated-failure"


class Unanswered(Exception):
    """The hub did not answer, or refused for now."""


class Ask(msgspec.Struct, frozen=True):
    """Give me the hub's answer."""

    question: Get | Offers


class Pause(msgspec.Struct, frozen=True):
    """Come back after so many seconds."""

    seconds: float


class Enter(msgspec.Struct, frozen=True):
    """The state has changed: say so. `ended` is how the update ended, where it has."""

    ended: str = ""


class Verify(msgspec.Struct, frozen=True):
    """There is a new root: come back when the chain has been verified."""

    repository: Repository


Effect = Ask | Pause | Enter | Verify
Walk = Generator[Effect, Answer | Refusal | Offered | None, None]
_Bytes = Generator[Effect, Answer | Refusal | Offered | None, bytes]


@dataclass(frozen=True)
class World:
    """What a walk needs beside its device's state."""

    trust: Trust
    facts: Facts
    steps: Steps
    random: random.Random


def update(device: str, state: DeviceState, world: World, group: Group | None, files: Files) -> Walk:
    """Looks what the director wants, and does it. Raises Unanswered, Untrusted."""
    wanted = yield from _director(device, state, world)
    if wanted is None:
        return
    state.director_version = wanted.version
    if group is not None and group.ends == "silent" and wanted.modules:
        state.silent = True
        return
    fresh = [one for one in wanted.modules if not _runs(state, one)]
    deployments = tuple(dict.fromkeys(one.custom.deployment for one in fresh))
    about = UpdateReport("resolving", wanted.version, deployments, attempt=1)
    state.modules = _kept(state, wanted)
    if not fresh:
        state.last = _ended(about, "committed") if wanted.modules else state.last
        yield Enter("settled" if wanted.modules else "")
        return
    run = _Update(state, world, group, files, about)
    yield from run.through(fresh)


def _director(device: str, state: DeviceState, world: World) -> Generator[Effect, object, DirectorSet | None]:
    """What is wanted now; None where it is what was wanted before."""
    for attempt in range(2):  # a set may be signed anew between two of our questions
        stamp = yield from _timestamp("director", state, world)
        if stamp is None:
            return None
        snapshot = yield from _whole("director", "snapshot.json")
        targets = yield from _whole("director", "targets.json")
        found = world.trust.director_set(device, targets)
        said, listed = versions(stamp), versions(snapshot)
        if said["snapshot.json"] == listed[""] and listed["targets.json"] == found.version:
            if found.version < state.director_version:
                raise Untrusted("rollback", f"director: version {found.version} after {state.director_version}")
            state.held = {**state.held, "director": sha256(stamp).digest()}
            return found
        if attempt:
            raise Untrusted("mix-and-match", f"director of {device}: files of different versions")
    return None


def _timestamp(repository: Repository, state: DeviceState, world: World) -> Generator[Effect, object, bytes | None]:
    """The repository's, where it is another than the one held. Asks for the next root first, as TUF does."""
    held = state.held.get(repository, b"")
    while True:
        question = Get(repository, f"{world.trust.roots[repository] + 1}.root.json", held=held)
        answer = yield Ask(question)
        if not isinstance(answer, Answer):
            break
        yield Verify(repository)
    if not isinstance(answer, Refusal) or answer.key != "not-found":
        raise Unanswered(f"{repository}: {getattr(answer, 'text', '')}")
    if answer.timestamp is None:
        return (yield from _whole(repository, "timestamp.json"))
    return answer.timestamp or None


def _whole(repository: Repository, name: str, length: int = 0) -> _Bytes:
    """All bytes of a file. Raises Unanswered."""
    data = b""
    while True:
        answer = yield Ask(Get(repository, name, len(data)))
        if not isinstance(answer, Answer):
            raise Unanswered(f"{name}: {getattr(answer, 'text', 'no answer')}")
        data += answer.data
        if len(data) >= answer.total:
            return data
        if not answer.data or (length and answer.total != length):
            raise Untrusted("length-or-hash", f"{name}: expected {length} bytes, got a file of {answer.total}")


class _Update:
    """From resolving to its end. Every state is entered before its work."""

    def __init__(
        self, state: DeviceState, world: World, group: Group | None, files: Files, about: UpdateReport
    ) -> None:
        self._state, self._world, self._files, self._about = state, world, files, about
        failing = group is not None and group.ends != "verified" and (not group.times or state.failed < group.times)
        self._group = group if failing else None

    def through(self, fresh: Sequence[Wanted]) -> Walk:
        yield from self._work("resolving")
        if any(self._is_older(one) for one in fresh):
            yield from self._end("rejected", "rollback", "the release counter is below the one that is installed")
            return
        manifests = yield from self._resolve(fresh)
        if self._group is not None and self._group.ends == "rejected":
            yield from self._end("rejected", REASON, "the profile lets this device reject")
            return
        total = sum(manifest.size for manifest in manifests)
        self._about = msgspec.structs.replace(self._about, total_bytes=total)
        steps: tuple[Step, ...] = ("fetching", "verifying", "staging", "trying")
        for step in steps:
            yield from self._work(step)
            if step == "fetching":
                yield from self._fetch(manifests)
            if self._group is not None and self._group.ends == "failed" and self._group.step == step:
                yield from self._end("failed", REASON, f"the profile lets this device fail while {step}")
                return
        yield from self._work("activating")
        yield from self._probation(fresh, manifests)

    def _probation(self, fresh: Sequence[Wanted], manifests: Sequence[Manifest]) -> Walk:
        before = self._state.modules
        self._state.modules = _with(before, fresh, manifests, verified=False)
        seconds = self._world.steps.probation
        if seconds is None:
            seconds = max(manifest.health.probation_s for manifest in manifests)
        yield from self._enter("probation")
        yield Pause(seconds)
        if self._group is not None and self._group.ends == "reverted":
            self._state.modules = before
            yield from self._enter("reverting")
            yield Pause(self._world.steps.activating)
            yield from self._end("reverting", REASON, "the profile lets this device revert in probation")
            return
        self._state.modules = _with(before, fresh, manifests, verified=True)
        yield from self._end("committed")

    def _resolve(self, fresh: Sequence[Wanted]) -> Generator[Effect, object, list[Manifest]]:
        """The image repository's files, and the manifests."""
        world, state = self._world, self._state
        stamp = yield from _timestamp("image", state, world)
        if stamp is not None:
            said = versions(stamp)
            name = f"{said['snapshot.json']}.snapshot.json"
            listed = world.facts.read((yield from _whole("image", name)), versions)
            roles = ["targets", *dict.fromkeys(one.path.publisher for one in fresh)]
            for role in roles:
                yield from _whole("image", f"{listed.get(f'{role}.json', 1)}.{role}.json")
            state.image_version = said[""]
            state.held = {**state.held, "image": sha256(stamp).digest()}
        manifests = []
        for one in fresh:
            data = yield from _whole("blob", one.sha256, one.length)
            check_bytes(data, one.sha256, str(one.path))
            manifests.append(world.facts.read(data, decode_manifest))
        return manifests

    def _fetch(self, manifests: Sequence[Manifest]) -> Walk:
        entries = {entry.sha256: entry for manifest in manifests for entry in manifest.files}
        yield Ask(Offers(tuple(entries)[:MAX_OFFERED]))
        for digest, entry in entries.items() if self._files != "none" else ():
            fetched, hashed = 0, sha256()
            most = entry.size if self._files == "all" else min(entry.size, BLOCK_BYTES)
            while fetched < most:
                answer = yield Ask(Get("blob", digest, fetched, min(BLOCK_BYTES, most - fetched)))
                if not isinstance(answer, Answer) or not answer.data:
                    raise Unanswered(f"{digest}: {getattr(answer, 'text', 'no bytes')}")
                hashed.update(answer.data)
                fetched += len(answer.data)
                done = self._about.done_bytes + len(answer.data)
                self._about = msgspec.structs.replace(self._about, done_bytes=done)
            if self._files == "all" and hashed.hexdigest() != digest:
                raise Untrusted("length-or-hash", f"{entry.path}: expected {digest}")

    def _is_older(self, one: Wanted) -> bool:
        have = next((module for module in self._state.modules if _key(module) == _wanted_key(one)), None)
        return have is not None and one.custom.release_counter < have.release_counter

    def _work(self, step: UpdateState) -> Walk:
        yield from self._enter(step)
        yield Pause(getattr(self._world.steps, step, 0.0) * self._world.random.uniform(0.5, 1.5))

    def _enter(self, step: UpdateState) -> Walk:
        self._about = self._state.current = msgspec.structs.replace(self._about, state=step)
        yield Enter()

    def _end(self, how: UpdateState, key: str = "", reason: str = "") -> Walk:
        if how != "committed":
            self._state.failed += 1
        self._state.last = msgspec.structs.replace(_ended(self._about, how), reason_key=key, reason=reason)
        self._state.current = IDLE
        yield Enter("reverted" if how == "reverting" else how)


def _ended(about: UpdateReport, how: UpdateState) -> UpdateReport:
    return msgspec.structs.replace(about, state=how)


def _runs(state: DeviceState, one: Wanted) -> bool:
    """Whether exactly this is here already, whichever deployment brought it."""
    return any(
        _key(module) == _wanted_key(one)
        and module.version == one.path.version
        and module.manifest_sha256 == one.sha256
        and module.verified
        for module in state.modules
    )


def _key(module: ModuleReport) -> tuple[str, bool]:
    """A candidate stands beside the version that serves under the same name."""
    return module.name, module.candidate


def _wanted_key(one: Wanted) -> tuple[str, bool]:
    return one.path.name, one.custom.mode in CANDIDATES


def _kept(state: DeviceState, wanted: DirectorSet) -> tuple[ModuleReport, ...]:
    """What stays of the modules: what is not wanted goes, what runs already belongs to the new deployment."""
    by_key = {_wanted_key(one): one for one in wanted.modules}
    kept = []
    for module in state.modules:
        one = by_key.get(_key(module))
        if one is not None:
            kept.append(_directed(module, one) if _runs(state, one) else module)
    return tuple(kept)


def _directed(module: ModuleReport, one: Wanted) -> ModuleReport:
    """A running module under what the director says of it now."""
    return msgspec.structs.replace(
        module,
        deployment=one.custom.deployment,
        release_counter=one.custom.release_counter,
        state="off" if one.custom.mode == "off" else "serving",
        mode=one.custom.mode,
        share=one.custom.share,
        config_sha256=config_digest(one.custom.config),
    )


def _with(
    before: tuple[ModuleReport, ...], fresh: Sequence[Wanted], manifests: Sequence[Manifest], verified: bool
) -> tuple[ModuleReport, ...]:
    new = {}
    for one, manifest in zip(fresh, manifests, strict=True):
        report = ModuleReport(
            manifest.name, manifest.version, one.sha256, one.custom.release_counter, one.custom.deployment, "serving",
            verified,
        )  # fmt: skip
        new[_wanted_key(one)] = _directed(report, one)
    return tuple(module for module in before if _key(module) not in new) + tuple(new.values())
