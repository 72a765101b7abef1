"""The parts of the simulator that have no sockets: the timer wheel, links, profiles, outboxes, and the book."""

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_hub.operator.errors import FileError
from cloud_hub.simulator.book import AHEAD, Book
from cloud_hub.simulator.fleet import Member, Place
from cloud_hub.simulator.identity import Identity, new_key
from cloud_hub.simulator.limits import raise_file_limit
from cloud_hub.simulator.link import Way
from cloud_hub.simulator.profile import Group, Link, Profile, load, place
from cloud_hub.simulator.state import MAX_WAITING, DeviceState, Lane
from cloud_hub.simulator.wheel import Wheel
from modules.messages import Ack
from support.simulated import HARDWARE

PLACE = Place("localhost", 8883, "ca", "image", "director", HARDWARE)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=50), st.integers(2, 64))
def test_every_wait_ends_once_and_never_early(delays: list[float], slots: int) -> None:
    wheel, now = Wheel(0.0, tick_s=0.1, slots=slots), [0.0]
    ended: list[tuple[float, float]] = []
    for delay in delays:
        wheel.after(delay, lambda delay=delay: ended.append((delay, now[0])))
    while now[0] < 60:
        now[0] += 0.1
        wheel.turn(now[0] + 1e-9)
    assert sorted(delay for delay, _ in ended) == sorted(delays)
    assert all(delay <= at + 1e-6 and at <= delay + 0.3 for delay, at in ended)
    assert wheel.waiting == 0


def test_a_wait_that_is_asked_for_by_a_wait_comes_in_a_later_tick() -> None:
    wheel = Wheel(0.0, tick_s=1.0, slots=4)
    seen: list[int] = []
    again: Callable[[], None] = lambda: (seen.append(len(seen)), wheel.after(0.0, again))[0]  # type: ignore[func-returns-value]  # noqa: E731
    wheel.after(0.0, again)
    wheel.turn(3.0)
    assert seen == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 0.5)), max_size=50))
def test_what_is_sent_first_arrives_first_also_over_a_lossy_link(sent: list[tuple[int, float]]) -> None:
    way, now, arrived = Way(Link(delay_ms=50, kib_per_s=100, loss=0.3)), 0.0, [0.0]
    for size, pause in sent:
        now += pause
        arrived.append(now + way.delay_s(size, now, random.Random(size)))
    assert all(before <= after + 1e-9 for before, after in pairwise(arrived))
    assert arrived[-1] >= sum(size for size, _ in sent) / (100 * 1024)


def test_groups_have_their_shares_and_the_same_devices_for_the_same_seed() -> None:
    profile = Profile(groups=(Group("far", 0.1), Group("broken", 0.25, ends="failed")), seed=3)
    placed = place(profile, 200)
    assert [sum(group is not None and group.name == name for group in placed) for name in ("far", "broken")] == [20, 50]
    assert placed == place(profile, 200)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("report_every_s = 0", "report_every_s: expected more than 0"),
        ("colour = 1", "unknown field `colour`"),
        ("[[groups]]\nname = 'x'\nshare = 2", "expected a share above 0 and up to 1"),
        ("[[groups]]\nname='a'\nshare=0.7\n[[groups]]\nname='b'\nshare=0.7", "shares that are 1 together at most"),
        ("[link]\nloss = 1.5", "a loss below 1"),
        ("[[groups]]\nname='a'\nshare=0.1\nlie='big'", "Invalid enum value 'big'"),
        ("not toml", "profile-invalid"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(FileError) as refused:
        load(path)
    assert said in f"{refused.value.key} {refused.value.message}"


def test_a_stream_is_acknowledged_in_parts_and_sent_anew_to_a_hub_that_has_lost_it() -> None:
    lane = Lane.new()
    for body in (b"1", b"2", b"3"):
        lane.put(body)
    assert lane.hear(Ack("window", lane.epoch, 2)) == 2
    assert lane.batch("window").entries == ((3, b"3"),)
    assert lane.batch("window").previous == 2
    before = lane.epoch
    assert lane.hear(Ack("window", "another", 9)) == 0
    assert lane.hear(Ack("window", before, 0, lost=True)) == 0
    assert lane.epoch != before
    assert (lane.batch("window").previous, lane.batch("window").entries) == (0, ((1, b"3"),))


def test_an_outbox_that_is_full_gives_up_its_oldest_entry_and_counts_it() -> None:
    lane = Lane.new()
    for number in range(MAX_WAITING + 2):
        lane.put(str(number).encode())
    assert (lane.lost, len(lane.waiting), lane.batch("event").previous) == (2, MAX_WAITING, 2)


async def test_a_fleet_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    member = Member(Identity("sim-1", b"certificate", new_key()), DeviceState())
    book = Book(tmp_path / "fleet.sqlite")
    assert book.load() == (None, [])
    book.add(PLACE, [member])
    member.state.counter = 7
    member.state.lane("window").put(b"window")
    await book.save([member])
    book.close(clean=True)
    again = Book(tmp_path / "fleet.sqlite")
    assert again.load() == (PLACE, [member])
    again.close(clean=True)


async def test_after_a_kill_counters_are_ahead_and_the_outbox_begins_anew(tmp_path: Path) -> None:
    member = Member(Identity("sim-1", b"certificate", new_key()), DeviceState(counter=7))
    member.state.lane("window").put(b"window")
    book = Book(tmp_path / "fleet.sqlite")
    book.add(PLACE, [member])
    book.close(clean=False)
    again = Book(tmp_path / "fleet.sqlite")
    _, (found,) = again.load()
    again.close(clean=False)
    assert found.state.counter == 7 + AHEAD
    assert found.state.window is not None
    assert member.state.window is not None
    assert found.state.window.epoch != member.state.window.epoch
    assert found.state.window.batch("window").entries == ((1, b"window"),)


def test_two_runs_do_not_share_a_fleet(tmp_path: Path) -> None:
    first = Book(tmp_path / "fleet.sqlite")
    first.add(PLACE, [])
    with pytest.raises(FileError, match="locked"):
        Book(tmp_path / "fleet.sqlite").load()
    first.close(clean=True)


def test_more_devices_than_files_may_be_open_are_refused_with_what_to_do() -> None:
    with pytest.raises(FileError, match="LimitNOFILE"):
        raise_file_limit(10**9)
