"""The window fills links of every kind, and does not fill their queues."""

from __future__ import annotations

import pytest

from agent.transfer.window import PIECE_BYTES, Window
from support.lines import Download, Line

MBIT = 1e6 / 8


def share(line: Line, download: Download, size: int) -> float:
    """How much of what the line can carry was used, from the first request to the last byte."""
    return size / line.rate / download.marks[-1][0]


def worst_queue_s(line: Line, share_of_blocks: float = 0.99) -> float:
    return sorted(line.queues)[int(share_of_blocks * len(line.queues))]


@pytest.mark.parametrize("jitter_s", [0.0, 0.01])
def test_a_link_of_20_mbit_and_50_ms_is_full_and_its_queue_short(jitter_s: float) -> None:
    line, download = Line(20 * MBIT, 0.05, jitter_s=jitter_s), Download(50_000_000)
    line.run([download])
    assert share(line, download, 50_000_000) >= 0.97
    assert worst_queue_s(line) <= 0.13
    assert max(line.queues) <= 0.2  # also while it starts


@pytest.mark.parametrize(("mbit", "trip_s"), [(2, 0.2), (20, 0.6), (100, 0.05), (0.25, 0.3), (0.02, 0.5)])
def test_other_links_are_nearly_full_once_the_start_is_over(mbit: float, trip_s: float) -> None:
    size = int(60 * mbit * MBIT)  # a minute's worth
    line, download = Line(mbit * MBIT, trip_s), Download(size)
    line.run([download])
    half = download.marks[-1][0] / 2
    assert download.between(half, 2 * half) / line.rate / half >= 0.95
    block_s = PIECE_BYTES / line.rate
    assert worst_queue_s(line) <= 0.35 + 3 * block_s


def test_jitter_of_a_satellite_does_not_take_it_for_full() -> None:
    line, download = Line(20 * MBIT, 0.6, jitter_s=0.05), Download(100_000_000)
    line.run([download])
    half = download.marks[-1][0] / 2
    assert download.between(half, 2 * half) / line.rate / half >= 0.95


def test_blocks_that_are_lost_shrink_the_window_and_do_not_stop_it() -> None:
    line, download = Line(20 * MBIT, 0.05, loss=0.02), Download(50_000_000)
    line.run([download])
    assert download.got == 50_000_000
    assert share(line, download, 50_000_000) >= 0.6
    assert download.window.in_flight == 0


@pytest.mark.parametrize("later_s", [0.0, 7.0])
def test_two_downloads_with_windows_of_their_own_share_a_link(later_s: float) -> None:
    line, first, second = Line(20 * MBIT, 0.05), Download(10**9), Download(10**9)
    line.run([first, second], [0.0, later_s], until=120.0)
    ours, theirs = (download.between(later_s + 5, 119) for download in (first, second))
    assert 1 / 3 <= ours / theirs <= 3
    assert (ours + theirs) / (114 - later_s) / line.rate >= 0.95
    assert worst_queue_s(line) <= 0.4


def test_a_link_that_becomes_slower_gets_smaller_blocks_and_its_queue_drains() -> None:
    line, download = Line(20 * MBIT, 0.05), Download(10**9)
    line.run([download], until=10.0)
    large = download.window.block
    line.rate = 2 * MBIT
    line.run([], until=40.0)
    before = len(line.queues)
    line.run([], until=60.0)
    assert download.window.block < large / 3
    assert max(line.queues[before:]) <= 0.4


def test_a_way_that_becomes_longer_is_noticed() -> None:
    line, download = Line(20 * MBIT, 0.02), Download(10**9)
    line.run([download], until=5.0)
    line.trip_s = 0.4
    line.run([], until=120.0)
    assert download.between(100, 119) / 19 / line.rate >= 0.9
    assert download.window.base_s >= 0.4


def test_it_begins_with_two_small_blocks() -> None:
    window = Window()
    assert (window.block, window.room()) == (PIECE_BYTES, 2 * PIECE_BYTES)


def test_it_never_asks_for_more_than_its_bound() -> None:
    line, download = Line(1e9, 0.5), Download(10**9, Window(most_bytes=1_000_000, block_bytes=100_000))
    line.run([download])
    assert download.window.size <= 1_000_000
    assert download.window.block <= 100_000


def test_what_was_held_back_is_no_measure_of_the_link() -> None:
    window, now = Window(), 0.0
    for _ in range(50):  # a fast link
        flight = window.sent(PIECE_BYTES, now)
        now += 0.01
        window.arrived(flight, now)
    fast = window.rate
    for _ in range(5):  # a pause between blocks: a cap, or the end of a file
        now += 0.1
        flight = window.sent(PIECE_BYTES, now, limited=True)
        now += 0.05
        window.arrived(flight, now)
    assert window.rate == fast


def test_a_flight_counts_once_however_often_it_ends() -> None:
    window = Window()
    flight = window.sent(PIECE_BYTES, 0.0)
    window.dropped(flight)
    window.dropped(flight)
    assert window.in_flight == 0


def test_answers_that_do_not_come_are_waited_for_longer_each_time() -> None:
    window = Window()
    assert window.timeout_s(15.0) == 15.0  # nothing is known yet
    window.arrived(window.sent(PIECE_BYTES, 0.0), 0.1)
    first = window.timeout_s(15.0)
    window.lost(window.sent(PIECE_BYTES, 0.2))
    assert first < window.timeout_s(15.0) <= 15.0
