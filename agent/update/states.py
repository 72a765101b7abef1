"""The update as one table: what each state does, where it leads, and as what it resumes after a power cut.

Pure: no clock, no disk. `agent.update.engine` walks it; reports to the hub use the same words. A state is persisted
before its work begins, so the row of the state that a dead agent finds in its store says everything that follows.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

# A straight run writes nine times; a device that loses power at each step of it, and reverts, stays below this.
MAX_WRITES = 28


class State(enum.StrEnum):
    IDLE = "idle"
    RESOLVING = "resolving"
    FETCHING = "fetching"
    VERIFYING = "verifying"
    STAGING = "staging"
    TRYING = "trying"
    ACTIVATING = "activating"
    PROBATION = "probation"
    COMMITTED = "committed"
    REVERTING = "reverting"
    REJECTED = "rejected"
    FAILED = "failed"


class Event(enum.Enum):
    """How a state's work ended."""

    OK = "ok"
    FAIL = "fail"
    NOTHING = "nothing"  # resolving: what is wanted is what runs
    SETTLED = "settled"  # resolving: nothing to load, only policies, modes or removals
    NOT_NOW = "not-now"  # resolving: what is wanted may be had another time; there is no room, or it took too long
    LATER = "later"  # the hub cannot be reached, or wants something else: leave it, without blame


class StateError(Exception):
    """A bug: an event that the state's row does not know."""


@dataclass(frozen=True)
class Row:
    """`serves_new` says which module set an agent that boots in this state serves; the default is the old one.

    `deadline_s` bounds the work; zero means that the modules' own deadlines add up to the bound. In fetching, time in
    which nothing may come (no link, not the allowed hours) does not count. `gives_up` is where the loop breaker leads.
    """

    state: State
    does: str
    ok: State
    fail: State
    resume_as: State
    deadline_s: float
    gives_up: State = State.FAILED
    serves_new: bool = False
    also: Mapping[Event, State] = field(default_factory=dict)


_S = State
_HOUR = 3600.0
_LEAVE = {Event.LATER: _S.IDLE}
TABLE: tuple[Row, ...] = (
    Row(_S.IDLE, "waits", _S.RESOLVING, _S.IDLE, _S.IDLE, 0),
    Row(
        _S.RESOLVING,
        "verifies both repositories, why_not, disk and memory",
        _S.FETCHING,
        _S.REJECTED,
        _S.RESOLVING,
        600,
        also={
            Event.NOTHING: _S.IDLE,
            Event.SETTLED: _S.COMMITTED,
            Event.NOT_NOW: _S.FAILED,
            Event.LATER: _S.IDLE,
        },
    ),
    Row(
        _S.FETCHING,
        "pulls chunks into staging",
        _S.VERIFYING,
        _S.FAILED,
        _S.FETCHING,
        24 * _HOUR,
        also=_LEAVE,
    ),
    Row(
        _S.VERIFYING,
        "checks every digest, path, size, link count",
        _S.STAGING,
        _S.FAILED,
        _S.VERIFYING,
        _HOUR,
        also=_LEAVE,
    ),
    # Resumes one row up: what a cut left half-written in a slot is thrown away, what is in staging is checked again.
    Row(_S.STAGING, "makes fresh slots, fsync", _S.TRYING, _S.FAILED, _S.VERIFYING, _HOUR, also=_LEAVE),
    Row(_S.TRYING, "loads spare workers, golden inputs", _S.ACTIVATING, _S.FAILED, _S.TRYING, 0, also=_LEAVE),
    # A cut here leaves nobody knowing who served: go back to what is known to be good.
    Row(_S.ACTIVATING, "hands over the sockets", _S.PROBATION, _S.REVERTING, _S.REVERTING, 300, _S.REVERTING),
    Row(
        _S.PROBATION,
        "watches errors, latency, crashes",
        _S.COMMITTED,
        _S.REVERTING,
        _S.PROBATION,
        0,
        _S.REVERTING,
        serves_new=True,
    ),
    # Cannot fail, only be late: the new set serves already and is healthy, so it tries again until it is written down.
    Row(
        _S.COMMITTED,
        "raises release counters, prunes",
        _S.IDLE,
        _S.COMMITTED,
        _S.COMMITTED,
        300,
        _S.COMMITTED,
        serves_new=True,
    ),
    Row(_S.REVERTING, "puts the old set back", _S.FAILED, _S.REVERTING, _S.REVERTING, 600),
    Row(_S.REJECTED, "keeps the reason, cleans staging", _S.IDLE, _S.IDLE, _S.REJECTED, 300),
    Row(_S.FAILED, "keeps the reason, cleans staging", _S.IDLE, _S.IDLE, _S.FAILED, 300),
)
_ROWS = {row.state: row for row in TABLE}


def row(state: State) -> Row:
    return _ROWS[state]


def after(state: State, event: Event) -> State:
    """The next state. Raises StateError when the table has no such edge."""
    line = _ROWS[state]
    if event is Event.OK:
        return line.ok
    if event is Event.FAIL:
        return line.fail
    if event in line.also:
        return line.also[event]
    raise StateError(f"update: state {state} does not know the event {event.value}")


def bounded(before: State, wanted: State, writes: int) -> State:
    """`wanted`, unless `writes` since idle say that the machine loops: then where `before` gives up."""
    if writes <= MAX_WRITES or wanted in (State.IDLE, State.COMMITTED):
        return wanted
    return _ROWS[before].gives_up
