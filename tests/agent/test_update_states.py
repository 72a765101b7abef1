"""The update table and the pure decisions around it."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.installed import Installed, ModuleSet, all_verified, carry_verified, changes
from agent.sandbox.protocol import Stats
from agent.update.probation import Seen, Verdict, judge
from agent.update.states import MAX_WRITES, TABLE, Event, State, StateError, after, bounded, row
from modules.manifest import Health, SamplingPolicy
from modules.messages import UpdateState

STRAIGHT = [
    State.IDLE, State.RESOLVING, State.FETCHING, State.VERIFYING, State.STAGING, State.TRYING, State.ACTIVATING,
    State.PROBATION, State.COMMITTED, State.IDLE,
]  # fmt: skip
# As the design has it. Columns: state, ok, fail, as what it resumes, serves the new set at boot.
DESIGN = """
idle        resolving   idle       idle        old
resolving   fetching    rejected   resolving   old
fetching    verifying   failed     fetching    old
verifying   staging     failed     verifying   old
staging     trying      failed     verifying   old
trying      activating  failed     trying      old
activating  probation   reverting  reverting   old
probation   committed   reverting  probation   new
committed   idle        committed  committed   new
reverting   failed      reverting  reverting   old
rejected    idle        idle       rejected    old
failed      idle        idle       failed      old
"""


def test_the_table_is_the_design() -> None:
    table = [[r.state, r.ok, r.fail, r.resume_as, "new" if r.serves_new else "old"] for r in TABLE]
    assert [list(map(str, line)) for line in table] == [line.split() for line in DESIGN.strip().splitlines()]


def test_reports_use_the_same_words() -> None:
    assert [state.value for state in State] == list(get_args(UpdateState))


def test_a_straight_run_passes_every_state_once() -> None:
    walked = [State.IDLE]
    while len(walked) == 1 or walked[-1] is not State.IDLE:
        walked.append(after(walked[-1], Event.OK))
    assert walked == STRAIGHT
    assert len(walked) < MAX_WRITES


MAY_LEAVE = (State.RESOLVING, State.FETCHING, State.VERIFYING, State.STAGING, State.TRYING)


@pytest.mark.parametrize("state", MAY_LEAVE)
def test_an_update_that_nobody_has_served_yet_can_be_left_without_blame(state: State) -> None:
    assert after(state, Event.LATER) is State.IDLE


def test_what_does_not_fit_now_fails_and_is_not_rejected_for_ever() -> None:
    assert after(State.RESOLVING, Event.NOT_NOW) is State.FAILED


@pytest.mark.parametrize("state", [s for s in State if s not in MAY_LEAVE])
def test_an_event_that_the_row_does_not_know_is_a_bug(state: State) -> None:
    with pytest.raises(StateError, match=f"state {state} does not know the event later"):
        after(state, Event.LATER)


def test_from_every_state_failures_alone_lead_back_to_idle_once_loops_are_broken() -> None:
    for start in State:
        state, writes = start, 0
        while state is not State.IDLE and state is not State.COMMITTED:
            writes += 1
            state = bounded(state, after(state, Event.FAIL), writes)
            assert writes < MAX_WRITES + 5, f"{start} does not end"


class Life:
    """A device under the table: what it serves, what it has committed, and whether its power is cut."""

    def __init__(self) -> None:
        self.state, self.writes, self.serves, self.committed = State.IDLE, 0, "old", "old"

    def event(self, event: Event) -> None:
        if self.state is State.COMMITTED and event is Event.OK:
            self.committed = self.serves
        if self.state is State.REVERTING and event is Event.OK:
            self.serves = self.committed
        if self.state is State.ACTIVATING:
            self.serves = "new" if event is Event.OK else "either"
        if (self.state, event) == (State.RESOLVING, Event.SETTLED):
            self.serves = "new"
        self.enter(after(self.state, event))

    def cut(self) -> None:
        self.serves = "new" if row(self.state).serves_new else self.committed
        if self.state is not State.IDLE:
            self.enter(row(self.state).resume_as)

    def enter(self, wanted: State) -> None:
        before = self.state
        self.writes += 1
        self.state = bounded(before, wanted, self.writes)
        if self.state is State.IDLE:
            assert self.serves == self.committed, f"{before} leads to idle while {self.serves} serves"
            self.writes, self.committed, self.serves = 0, "old", "old"
        if self.state is State.PROBATION:
            assert self.serves == "new"


@given(st.lists(st.one_of(st.just("cut"), st.sampled_from(Event)), max_size=120))
def test_whatever_happens_and_wherever_power_is_cut_idle_serves_what_was_committed(happens: list[str | Event]) -> None:
    life = Life()
    for what in happens:
        if isinstance(what, str):
            life.cut()
        elif what in (Event.OK, Event.FAIL) or what in row(life.state).also:
            life.event(what)
        assert life.writes <= MAX_WRITES + 5 or life.state is State.COMMITTED, "it loops"


@given(st.sampled_from(State), st.integers(0, MAX_WRITES))
def test_power_cuts_alone_end_every_update(state: State, writes: int) -> None:
    life = Life()
    life.state, life.writes = state, writes
    life.serves = "new" if row(state).serves_new else "either" if state is State.ACTIVATING else "old"
    for _ in range(MAX_WRITES + 1):
        life.cut()
    assert life.state in (State.IDLE, State.FAILED, State.REJECTED, State.REVERTING, State.COMMITTED)


def module(name: str = "m", digest: str = "a", **fields: object) -> Installed:
    return msgspec.convert(
        {"name": name, "version": 1, "manifest_sha256": digest * 64, "release_counter": 1, "deployment": "d", **fields},
        Installed,
    )


def test_a_new_manifest_is_fetched_and_tried_and_one_that_stays_is_not() -> None:
    stays, comes = module("a", "a", verified=True), module("b", "b")
    found = changes(ModuleSet(1, 1, (stays,)), ModuleSet(2, 1, (stays, comes)))
    assert (found.fetch, found.trial, found.same) == ((comes,), (comes,), False)


def test_a_new_module_that_is_off_is_fetched_but_not_tried() -> None:
    comes = module("b", "b", mode="off")
    found = changes(ModuleSet(), ModuleSet(1, 1, (comes,)))
    assert (found.fetch, found.trial) == ((comes,), ())


def test_a_module_that_was_never_on_is_tried_when_it_is_switched_on() -> None:
    found = changes(ModuleSet(1, 1, (module(mode="off"),)), ModuleSet(2, 1, (module(),)))
    assert (found.fetch, len(found.trial)) == ((), 1)


@pytest.mark.parametrize(
    "fields",
    [{"mode": "off"}, {"sampling": SamplingPolicy(rate=0.5)}, {"release_counter": 2}, {"deployment": "other"}],
)
def test_wishes_about_the_same_files_need_no_trial(fields: dict[str, object]) -> None:
    held = module(verified=True)
    found = changes(ModuleSet(1, 1, (held,)), ModuleSet(2, 1, (msgspec.structs.replace(held, **fields),)))
    assert found.settled
    assert not found.same


def test_another_configuration_of_the_same_files_is_tried_but_not_fetched() -> None:
    held = module(verified=True, config={"threshold": 1})
    target = ModuleSet(2, 1, (module(config={"threshold": 2}),))
    found = changes(ModuleSet(1, 1, (held,)), carry_verified(ModuleSet(1, 1, (held,)), target))
    assert (found.fetch, len(found.trial), found.same) == ((), 1, False)


def test_nothing_wanted_needs_no_trial_and_is_a_change() -> None:
    found = changes(ModuleSet(1, 1, (module(verified=True),)), ModuleSet(2, 1, ()))
    assert found.settled
    assert not found.same


def test_newer_metadata_for_the_same_modules_is_no_change() -> None:
    assert changes(ModuleSet(1, 1, (module(verified=True),)), ModuleSet(2, 2, (module(),))).same


def test_what_was_verified_stays_so_and_only_what_serves_becomes_so() -> None:
    current = ModuleSet(1, 1, (module("a", "a", verified=True),))
    target = carry_verified(
        current, ModuleSet(2, 1, (module("a", "a"), module("b", "b"), module("c", "c", mode="off")))
    )
    assert [m.verified for m in target.modules] == [True, False, False]
    assert [m.verified for m in all_verified(target).modules] == [True, True, False]


HEALTH = Health(
    latency_bound_ms=10.0, probation_s=60.0, probation_inferences=20, probation_deadline_s=600.0, max_error_rate=0.01
)


@pytest.mark.parametrize(
    ("stats", "crashes", "elapsed_s", "verdict", "key"),
    [
        (Stats(requests=20, p99_us=9_000), 0, 59, Verdict.WAITING, ""),
        (Stats(requests=20, p99_us=9_000), 0, 60, Verdict.HEALTHY, ""),
        (Stats(requests=19), 0, 60, Verdict.WAITING, ""),
        (Stats(requests=19), 0, 600, Verdict.UNHEALTHY, "probation-deadline"),
        (Stats(requests=20), 1, 1, Verdict.UNHEALTHY, "crashed"),
        (Stats(requests=1, errors=1), 0, 1, Verdict.WAITING, ""),
        (Stats(requests=2, errors=2), 0, 1, Verdict.UNHEALTHY, "error-rate"),
        (Stats(requests=20, errors=1), 0, 60, Verdict.UNHEALTHY, "error-rate"),
        (Stats(requests=200, errors=2), 0, 60, Verdict.HEALTHY, ""),
        (Stats(requests=99, p99_us=11_000), 0, 1, Verdict.WAITING, ""),
        (Stats(requests=100, p99_us=11_000), 0, 1, Verdict.UNHEALTHY, "latency"),
        (Stats(requests=20, p99_us=11_000), 0, 60, Verdict.UNHEALTHY, "latency"),
    ],
)
def test_probation_judges_by_what_was_promised(
    stats: Stats, crashes: int, elapsed_s: float, verdict: Verdict, key: str
) -> None:
    judgement = judge("m", HEALTH, Seen(stats, crashes, "SIGSEGV"), elapsed_s)
    assert (judgement.verdict, judgement.key) == (verdict, key)
    assert (judgement.text == "") == (key == "")
