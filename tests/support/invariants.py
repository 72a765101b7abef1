"""What must hold of everything that a hub has recorded, whatever was killed meanwhile: an independent reading of it.

`violations` replays the audit trail with a small model of its own, written from what the documentation promises and not
from the engine, and compares the end with the rows. It says what is wrong by a rule's name:

    chain               the trail's hashes do not hold together
    assigned-twice      a device was assigned again by a rollout without a new attempt
    two-at-once         a device was assigned by a rollout while another one of the same module was under way on it
    assigned-too-early  before its group was open
    assigned-too-late   after the rollout had ended, or after a threshold was passed and nobody had let it go on
    group-order         a group opened that was not the next
    group-too-early     a group opened before the one before had its successes
    ended-twice         an execution ended that had ended, or that was never begun
    not-ended           a rollout has ended and an execution of it has not
    skipped             a rollout has finished, and a device of it was never assigned and never left out
    return-incomplete   a fleet was rolled back, and a device kept the module that is not said to be stuck
    version-order       a device's director went backwards
    row-differs         a row of executions is not what the trail says
    counts-differ       the counts that decisions rest on are not what a recount gives
    effect-twice        a command was carried out, or ended, more than once
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from cloud_hub.chain import Event, verify
from cloud_hub.rollouts.states import NOT_ELIGIBLE, Rollout
from support.history import History, Part

FAILED = frozenset({"failed", "reverted", "rejected", "timed_out", "silent"})
OVER = frozenset({"rollout.finished", "rollout.failed", "rollout.aborted", "rollout.rolled-back"})
ENDED = frozenset({"finished", "failed", "aborted", "rolled_back"})
WAITING, BEGUN, VERIFIED, CANCELLED = "waiting", "begun", "verified", "cancelled"
RETURNED = frozenset({"returned", "stuck"})


@dataclass(frozen=True)
class Violation:
    """`rule` is one of those above, `subject` a rollout or a command."""

    rule: str
    subject: str
    text: str


def violations(history: History) -> list[Violation]:
    """All of them, in no order; empty when everything is as it must be. Nothing may be under way any more."""
    found = [Violation("chain", "events", f"{one.id}: {one.why}") for one in verify(history.events).breaks]
    replays = {
        rollout.id: _Replay(rollout, [part for part in history.parts if part.rollout == rollout.id])
        for rollout in history.rollouts
    }
    under_way: dict[tuple[str, str], str] = {}  # device and module: the rollout
    versions: dict[str, int] = {}
    for event in history.events:
        if (replay := replays.get(event.subject)) is None:
            continue
        found += replay.take(event)
        found += _two_at_once(event, replay, under_way)
        found += _version(event, versions)
    for replay in replays.values():
        found += replay.at_the_end()
    return found + list(_counts(history)) + list(_commands(history))


class _Replay:
    """One rollout, as its events tell it."""

    def __init__(self, rollout: Rollout, parts: list[Part]) -> None:
        self.rollout = rollout
        self._parts = {part.device: part for part in parts if part.group != NOT_ELIGIBLE}
        self.standing = dict.fromkeys(self._parts, WAITING)
        self._group = -1
        self._over = self._going_back = False
        self._let_pass: Counter[str] = Counter()  # failures that a person has seen
        self._pardoned = -1  # and the group whose successes
        self._joined: set[str] = set()

    def take(self, event: Event) -> Iterator[Violation]:
        match event.kind:
            case "rollout.assigned":
                yield from self._assigned(str(event.details["device"]))
            case "rollout.device-ended":
                already = event.details.get("reason_key") == "already-runs"
                yield from self._ended(str(event.details["device"]), str(event.details["state"]), already)
            case "rollout.device-retried":
                self.standing[str(event.details["device"])] = WAITING
            case "rollout.group-started":
                yield from self._opened(int(event.details["group"]))
            case "rollout.cancelled":
                yield from self._cancelled(int(event.details["devices"]))
            case "rollout.joined":
                self._joined.add(str(event.details["device"]))
            case "rollout.resumed" | "rollout.retried":
                self._pardon()
                self._over = False
            case "rollout.rolling-back":
                self._going_back, self._over = True, False
            case kind if kind in OVER:
                self._over = True

    def at_the_end(self) -> Iterator[Violation]:
        """What the rows must say, now that nothing is under way."""
        over, ends = str(self.rollout.state) in ENDED, self.rollout.state
        for device, part in self._parts.items():
            told = self.standing[device]
            if told != part.state and not (told == BEGUN and part.state in ("assigned", "updating")):
                yield self._wrong("row-differs", f"{device} is {part.state}, its events say {told}")
            if over and part.state in ("waiting", "assigned", "updating", "returning"):
                yield self._wrong("not-ended", f"{device} is {part.state} and the rollout {ends}")
            if ends == "finished" and told == WAITING:
                yield self._wrong("skipped", f"{device} was never assigned and never left out")
            if ends == "rolled_back" and part.state == VERIFIED:
                yield self._wrong("return-incomplete", f"{device} still has the module")

    def _assigned(self, device: str) -> Iterator[Violation]:
        standing = self.standing.get(device)
        if standing != WAITING:
            yield self._wrong("assigned-twice", f"{device} was assigned while it was {standing}")
        if device in self._parts and self._parts[device].group > self._group:
            yield self._wrong("assigned-too-early", f"{device} of group {self._parts[device].group} was assigned")
        if self._over or self._going_back:
            yield self._wrong("assigned-too-late", f"{device} was assigned after the rollout's end")
        if said := self._passed():
            yield self._wrong("assigned-too-late", f"{device} was assigned although {said}")
        self.standing[device] = BEGUN

    def _ended(self, device: str, state: str, already: bool) -> Iterator[Violation]:
        """`already`: the device ran it before its turn came, so that nothing had to be assigned."""
        standing = self.standing.get(device, "nowhere")
        if state in RETURNED:
            sound = standing == VERIFIED or (standing == "stuck" and self._going_back)
            sound = sound and self._going_back
        else:
            unbegun = state in ("rejected", CANCELLED) or (already and state == VERIFIED)
            sound = standing == BEGUN or (standing == WAITING and unbegun)
        if not sound:
            yield self._wrong("ended-twice", f"{device} ended as {state}, it was {standing}")
        self.standing[device] = state

    def _opened(self, group: int) -> Iterator[Violation]:
        if group != self._group + 1:
            yield self._wrong("group-order", f"group {group} opened after group {self._group}")
        if self._over or self._going_back or self._passed():
            yield self._wrong("group-too-early", f"group {group} opened after the end, or although a threshold stood")
        for before in range(group):
            share, done = self._successes(before)
            if share < self.rollout.plan.success_threshold and not (done and self._pardoned >= before):
                wanted = self.rollout.plan.success_threshold
                yield self._wrong("group-too-early", f"group {group}: {share:g} % of group {before}, not {wanted:g} %")
        self._group = group

    def _cancelled(self, count: int) -> Iterator[Violation]:
        waiting = [device for device, standing in self.standing.items() if standing == WAITING]
        if len(waiting) != count:
            yield self._wrong("ended-twice", f"{count} were cancelled that waited, {len(waiting)} did")
        self.standing |= dict.fromkeys(waiting, CANCELLED)

    def _pardon(self) -> None:
        self._let_pass = Counter(state for state in self.standing.values() if state in FAILED)
        _, done = self._successes(self._group)
        self._pardoned = self._group if done else self._pardoned

    def _successes(self, group: int) -> tuple[float, bool]:
        """In percent of those that were in the group from the start, and whether all of it has ended."""
        members = [d for d, part in self._parts.items() if part.group == group and d not in self._still_to_join()]
        states = [self.standing[device] for device in members]
        verified = sum(state == VERIFIED for state in states)
        return 100 * verified / max(1, len(members)), not {WAITING, BEGUN} & set(states)

    def _still_to_join(self) -> set[str]:
        if not self.rollout.plan.joining:
            return set()
        return {d for d, part in self._parts.items() if self.standing[d] == WAITING and d not in self._joined
                and part.group == max(p.group for p in self._parts.values())}  # fmt: skip

    def _passed(self) -> str:
        """Which threshold is passed, that nobody has let pass; empty when none is."""
        total = Counter(self.standing.values())
        ended = total[VERIFIED] + sum(total[state] for state in FAILED)
        for threshold in self.rollout.plan.every_threshold:
            states = FAILED if threshold.kind == "any" else {threshold.kind}
            count = sum(total[state] for state in states)
            if count > sum(self._let_pass[state] for state in states) and threshold.passed(count, ended):
                return f"{count} of {ended} had failed ({threshold.kind})"
        return ""

    def _wrong(self, rule: str, text: str) -> Violation:
        return Violation(rule, self.rollout.id, text)


def _two_at_once(event: Event, replay: _Replay, under_way: dict[tuple[str, str], str]) -> Iterator[Violation]:
    if event.kind not in ("rollout.assigned", "rollout.device-ended", "rollout.device-retried"):
        return
    key = str(event.details["device"]), replay.rollout.module
    if event.kind != "rollout.assigned":
        if under_way.get(key) == event.subject:
            del under_way[key]
        return
    other = under_way.get(key, event.subject)
    if other != event.subject:
        yield Violation("two-at-once", event.subject, f"{key[0]} was assigned while {other} was under way on it")
    under_way[key] = event.subject


def _version(event: Event, versions: dict[str, int]) -> Iterator[Violation]:
    if event.kind != "rollout.assigned":
        return
    device, version = str(event.details["device"]), int(event.details["director_version"])
    if version <= versions.get(device, 0):
        yield Violation("version-order", event.subject, f"{device}: {version} after {versions[device]}")
    versions[device] = version


def _counts(history: History) -> Iterator[Violation]:
    recount = Counter((p.rollout, p.group, p.state) for p in history.parts if p.group != NOT_ELIGIBLE)
    for key in recount.keys() | history.counts.keys():
        if key[1] != NOT_ELIGIBLE and recount[key] != history.counts.get(key, 0):
            rollout, group, state = key
            text = f"group {group}: {recount[key]} are {state}, the count says {history.counts.get(key, 0)}"
            yield Violation("counts-differ", rollout, text)


def _commands(history: History) -> Iterator[Violation]:
    ends = Counter(str(event.details["id"]) for event in history.events if event.kind == "command.ended")
    for command, times in (ends | Counter(history.effects)).items():
        if times > 1:
            yield Violation("effect-twice", command, f"it was carried out or ended {times} times")
