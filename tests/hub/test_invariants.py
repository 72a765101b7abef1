"""The invariant checker: content with what must be, and with nothing else. It finds each way of breaking a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_hub.chain import GENESIS, Event, digest
from cloud_hub.events import Events
from cloud_hub.rollouts.plan import Group, Plan
from cloud_hub.rollouts.states import Rollout, RolloutState
from cloud_hub.store.engine import Store
from support.clock import SetClock
from support.history import History, Part, read_history
from support.invariants import violations
from support.reporting import Fleet

SETTINGS = settings(deadline=None, max_examples=25)
Told = tuple[str, str, dict[str, object]]  # kind, subject, details


@dataclass(frozen=True)
class Story:
    """How one rollout went: the outcomes of its devices by group, and whether everybody was taken back."""

    name: str
    groups: tuple[tuple[str, ...], ...]
    rolled_back: bool

    @property
    def outcomes(self) -> dict[str, str]:
        return {f"cam-{g}-{n}": state for g, group in enumerate(self.groups) for n, state in enumerate(group)}

    def told(self, first_version: int) -> list[Told]:
        found: list[Told] = [("rollout.created", self.name, {}), ("rollout.started", self.name, {})]
        version = first_version
        for index, group in enumerate(self.groups):
            found.append(("rollout.group-started", self.name, {"group": index, "devices": len(group)}))
            for number in range(len(group)):
                version += 1
                about = {"device": f"cam-{index}-{number}", "group": index, "director_version": version}
                found.append(("rollout.assigned", self.name, about))
            for number, state in enumerate(group):
                found.append(
                    (
                        "rollout.device-ended",
                        self.name,
                        {"device": f"cam-{index}-{number}", "group": index, "state": state},
                    )
                )
        if not self.rolled_back:
            return [*found, ("rollout.finished", self.name, {})]
        back = [device for device, state in self.outcomes.items() if state == "verified"]
        found.append(("rollout.rolling-back", self.name, {}))
        found += [("rollout.device-ended", self.name, {"device": device, "state": "returned"}) for device in back]
        return [*found, ("rollout.rolled-back", self.name, {})]

    @property
    def rollout(self) -> Rollout:
        share = min(100 * sum(state == "verified" for state in group) / len(group) for group in self.groups)
        groups = tuple(Group(len(group)) for group in self.groups)
        plan = Plan(groups, success_threshold=int(share), error_threshold=100)
        state = RolloutState.ROLLED_BACK if self.rolled_back else RolloutState.FINISHED
        return Rollout(self.name, "digits", 2, "all", plan, state, 0.0, group_index=len(self.groups) - 1)

    def parts(self) -> list[Part]:
        ends = {d: "returned" if s == "verified" and self.rolled_back else s for d, s in self.outcomes.items()}
        return [Part(self.name, device, int(device.split("-")[1]), state) for device, state in ends.items()]


def linked(told: Sequence[Told]) -> list[Event]:
    """As the hub chains them."""
    events: list[Event] = []
    for number, (kind, subject, details) in enumerate(told, 1):
        previous = events[-1].hash if events else GENESIS
        event = Event(number, 0.0, kind, "rollout", subject, dict(details), previous, "")
        events.append(msgspec.structs.replace(event, hash=digest(event)))
    return events


def recounted(parts: Sequence[Part]) -> dict[tuple[str, int, str], int]:
    return dict(Counter((part.rollout, part.group, part.state) for part in parts))


def made(stories: Sequence[Story]) -> tuple[list[Told], History]:
    told = [one for number, story in enumerate(stories) for one in story.told(1000 * number)]
    parts = [part for story in stories for part in story.parts()]
    told.append(("command.ended", "cam-0-0", {"id": "c1", "state": "done"}))
    rollouts = [story.rollout for story in stories]
    return told, History(linked(told), rollouts, parts, recounted(parts), {"c1": 1})


@st.composite
def stories(draw: st.DrawFn) -> list[Story]:
    """Two rollouts of a module, one after the other, on the same devices."""
    outcome = st.sampled_from(["verified", "verified", "failed", "silent", "reverted", "timed_out"])
    rest = st.lists(outcome, max_size=4).map(lambda others: ("verified", *others))
    groups = draw(st.lists(rest, min_size=2, max_size=4).map(tuple))
    return [Story("r1", groups, draw(st.booleans())), Story("r2", groups, draw(st.booleans()))]


@SETTINGS
@given(stories())
def test_a_sound_history_has_no_violation(told: list[Story]) -> None:
    assert violations(made(told)[1]) == []


Spoilt = tuple[list[Told], History]


def index_of(told: list[Told], kind: str, nth: int = 0, **about: object) -> int:
    found = [i for i, (k, _, d) in enumerate(told) if k == kind and about.items() <= d.items()]
    return found[nth]


def assigned_twice(told: list[Told], history: History) -> Spoilt:
    at = index_of(told, "rollout.assigned")
    again = dict(told[at][2]) | {"director_version": 500}
    return [*told[: at + 1], (told[at][0], told[at][1], again), *told[at + 1 :]], history


def two_at_once(told: list[Told], history: History) -> Spoilt:
    at = index_of(told, "rollout.assigned")
    begun = [one for one in told if one[1] == "r2" and one[0] in ("rollout.created", "rollout.started")]
    opened: Told = ("rollout.group-started", "r2", {"group": 0, "devices": 1})
    about = ("rollout.assigned", "r2", dict(told[at][2]) | {"director_version": 500})
    return [*told[: at + 1], *begun, opened, about, *told[at + 1 :]], history


def assigned_too_early(told: list[Told], history: History) -> Spoilt:
    at = index_of(told, "rollout.assigned", group=1)
    opened = index_of(told, "rollout.group-started", group=1)
    return [*told[:opened], told[at], *(one for i, one in enumerate(told) if i >= opened and i != at)], history


def assigned_too_late(told: list[Told], history: History) -> Spoilt:
    at, end = index_of(told, "rollout.assigned"), max(i for i, one in enumerate(told) if one[1] == "r1")
    late = ("rollout.assigned", "r1", dict(told[at][2]) | {"director_version": 999})
    return [*told[: end + 1], late, *told[end + 1 :]], history


def group_order(told: list[Told], history: History) -> Spoilt:
    at = index_of(told, "rollout.group-started", group=1)
    return [*told[:at], (told[at][0], told[at][1], {"group": 2, "devices": 1}), *told[at + 1 :]], history


def group_too_early(told: list[Told], history: History) -> Spoilt:
    ended = index_of(told, "rollout.device-ended", group=0, state="verified")
    opened = index_of(told, "rollout.group-started", group=1)
    rollouts = [msgspec.structs.replace(r, plan=msgspec.structs.replace(r.plan, success_threshold=1))
                for r in history.rollouts]  # fmt: skip
    verified = [i for i in range(ended, opened) if told[i][2].get("state") == "verified"]
    kept = [one for i, one in enumerate(told[:opened]) if i not in verified]
    return [*kept, told[opened], *(told[i] for i in verified), *told[opened + 1 :]], replace(history, rollouts=rollouts)


def ended_twice(told: list[Told], history: History) -> Spoilt:
    at = index_of(told, "rollout.device-ended")
    return [*told[: at + 1], told[at], *told[at + 1 :]], history


def ended_unassigned(told: list[Told], history: History) -> Spoilt:
    at = index_of(told, "rollout.assigned")
    return [*told[:at], *told[at + 1 :]], history


def not_ended(told: list[Told], history: History) -> Spoilt:
    device = history.parts[0].device
    at = index_of(told, "rollout.device-ended", device=device)
    parts = [replace(history.parts[0], state="assigned"), *history.parts[1:]]
    changed = replace(history, parts=parts, counts=recounted(parts))
    return [*told[:at], *told[at + 1 :]], changed


def skipped(told: list[Told], history: History) -> Spoilt:
    rollouts = [msgspec.structs.replace(r, state=RolloutState.FINISHED) for r in history.rollouts]
    device = history.parts[0].device
    left = [one for one in told if one[1] != "r1" or one[2].get("device") != device]
    parts = [replace(history.parts[0], state="waiting"), *history.parts[1:]]
    return left, replace(history, rollouts=rollouts, parts=parts, counts=recounted(parts))


def return_incomplete(told: list[Told], history: History) -> Spoilt:
    rollouts = [msgspec.structs.replace(r, state=RolloutState.ROLLED_BACK) for r in history.rollouts]
    first = next(i for i, part in enumerate(history.parts) if part.state in ("verified", "returned"))
    parts = [replace(part, state="verified") if i == first else part for i, part in enumerate(history.parts)]
    return told, replace(history, rollouts=rollouts, parts=parts, counts=recounted(parts))


def version_order(told: list[Told], history: History) -> Spoilt:
    at = index_of(told, "rollout.assigned", nth=-1)
    back = dict(told[at][2]) | {"director_version": 0}
    return [*told[:at], (told[at][0], told[at][1], back), *told[at + 1 :]], history


def row_differs(told: list[Told], history: History) -> Spoilt:
    parts = [replace(history.parts[0], state="rejected"), *history.parts[1:]]
    return told, replace(history, parts=parts, counts=recounted(parts))


def counts_differ(told: list[Told], history: History) -> Spoilt:
    key = next(iter(history.counts))
    return told, replace(history, counts={**history.counts, key: history.counts[key] + 1})


def count_left_over(told: list[Told], history: History) -> Spoilt:
    return told, replace(history, counts={**history.counts, ("r1", 0, "waiting"): 1})


def effect_twice(told: list[Told], history: History) -> Spoilt:
    return told, replace(history, effects={"c1": 2})


def command_ended_twice(told: list[Told], history: History) -> Spoilt:
    return [*told, told[-1]], history


def threshold_ignored(told: list[Told], history: History) -> Spoilt:
    """The first device fails where nobody may, and the next group's devices are assigned all the same."""
    at = index_of(told, "rollout.device-ended")
    failed = (told[at][0], told[at][1], dict(told[at][2]) | {"state": "failed"})
    strict = [msgspec.structs.replace(r, plan=msgspec.structs.replace(r.plan, error_threshold=0.0))
              for r in history.rollouts]  # fmt: skip
    return [*told[:at], failed, *told[at + 1 :]], replace(history, rollouts=strict)


BREAKAGES: tuple[tuple[str, Callable[[list[Told], History], Spoilt]], ...] = (
    ("assigned-twice", assigned_twice),
    ("two-at-once", two_at_once),
    ("assigned-too-early", assigned_too_early),
    ("assigned-too-late", assigned_too_late),
    ("assigned-too-late", threshold_ignored),
    ("group-order", group_order),
    ("group-too-early", group_too_early),
    ("ended-twice", ended_twice),
    ("ended-twice", ended_unassigned),
    ("not-ended", not_ended),
    ("skipped", skipped),
    ("return-incomplete", return_incomplete),
    ("version-order", version_order),
    ("row-differs", row_differs),
    ("counts-differ", counts_differ),
    ("counts-differ", count_left_over),
    ("effect-twice", effect_twice),
    ("effect-twice", command_ended_twice),
)


@pytest.mark.parametrize(("rule", "spoil"), BREAKAGES, ids=[spoil.__name__ for _, spoil in BREAKAGES])
@SETTINGS
@given(told=stories())
def test_each_way_of_breaking_a_history_is_found(
    rule: str, spoil: Callable[[list[Told], History], Spoilt], told: list[Story]
) -> None:
    spoilt, history = spoil(*made(told))
    found = violations(replace(history, events=linked(spoilt)))
    assert rule in {one.rule for one in found}


@SETTINGS
@given(stories(), st.data())
def test_an_event_that_was_changed_or_taken_out_afterwards_is_found(told: list[Story], data: st.DataObject) -> None:
    _, history = made(told)
    events = list(history.events)
    at = data.draw(st.integers(0, len(events) - 2))
    changed = [*events[:at], msgspec.structs.replace(events[at], actor="mallory"), *events[at + 1 :]]
    for broken in (changed, [*events[:at], *events[at + 1 :]]):
        assert "chain" in {one.rule for one in violations(replace(history, events=broken))}


async def test_the_controller_leaves_a_sound_history(store: Store, events: Events, clock: SetClock) -> None:
    fleet = Fleet(store, events, clock)
    await fleet.furnish()
    first = (await fleet.create(version=1, groups=("rest",))).rollout.id
    for number in range(1, 6):
        await fleet.verified(f"cam-{number}00", first, version=1)
    second = (
        await fleet.create(retries=1, retry_after_s=60.0, error_threshold=50.0, success_threshold=60.0)
    ).rollout.id
    await fleet.verified("cam-100", second)
    await fleet.failed("cam-200", second)  # and is tried again
    for number in (3, 4):
        await fleet.verified(f"cam-{number}00", second)
    clock.advance(61)
    await fleet.rollouts.tick()
    fleet.rollouts = fleet.restarted()
    clock.advance(601)
    await fleet.rollouts.tick()
    await fleet.verified("cam-500", second)
    await fleet.rollouts.roll_back(second, "ann")
    for number in (1, 3, 4, 5):
        await fleet.verified(f"cam-{number}00", first, version=1)
    clock.advance(601)
    await fleet.rollouts.tick()
    found = await read_history(store)
    assert violations(found) == []
    assert len(found.events) > 20
