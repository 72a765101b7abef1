"""No device outvotes the others: what it sends above its share is thinned, evenly, and nothing else changes."""

import numpy as np
import pytest

from cloud_hub.monitoring.balance import balance, share_allowed, thin, without
from cloud_hub.monitoring.verdict import LookSeries

RANDOM = np.random.default_rng(3)


def series(rows: list[int], cells: int = 6, first: int = 0) -> LookSeries:
    counts = np.array([RANDOM.multinomial(count, [1 / cells] * cells) for count in rows], np.int64)
    starts = tuple(float(first + place) for place in range(len(rows)))
    return LookSeries(starts, counts, np.zeros((len(rows), 0)), rows=np.array(rows, np.int64))


def total(*parts: LookSeries) -> LookSeries:
    counts, rows = sum(part.counts for part in parts), sum(part.rows for part in parts)
    return LookSeries(parts[0].starts, np.asarray(counts), parts[0].moments, rows=np.asarray(rows))


@pytest.mark.parametrize(("devices", "share"), [(1, 1.0), (2, 1.0), (4, 0.5), (10, 0.2), (20, 0.1), (10_000, 0.1)])
def test_the_share_of_one_device_is_twice_its_part_and_never_below_a_tenth(devices: int, share: float) -> None:
    assert share_allowed(devices) == pytest.approx(share)


def test_a_device_with_a_million_rows_counts_like_its_share_of_the_others() -> None:
    others, heavy = [series([100, 100, 100]) for _ in range(9)], series([100, 1_000_000, 100])
    fleet = total(*others, heavy)
    balanced = balance(fleet, [heavy], devices=10)
    assert balanced.rows.tolist() == [1000, 900 + 225, 1000]  # a fifth of all, in the look where it was more
    shares = (balanced.counts - total(*others).counts)[1] / 225
    assert shares == pytest.approx([1 / 6] * 6, abs=0.01)
    assert (balanced.counts[0] == fleet.counts[0]).all()


def test_where_all_send_much_the_same_the_looks_are_the_very_same() -> None:
    others = [series([100, 120]) for _ in range(10)]
    fleet = total(*others)
    assert balance(fleet, others, devices=10) is fleet


def test_a_device_whose_looks_are_others_is_taken_out_only_where_it_was() -> None:
    fleet, own = series([500, 500, 500]), series([50], first=1)
    rest = without(fleet, [own])
    assert rest.rows.tolist() == [500, 450, 500]
    assert (rest.counts[[0, 2]] == fleet.counts[[0, 2]]).all()
    assert (rest.counts[1] == np.maximum(fleet.counts[1] - own.counts[0], 0)).all()


def test_thinned_counts_stay_whole_and_keep_their_sum_within_a_row() -> None:
    counts = RANDOM.integers(0, 1000, size=200)
    thinned = thin(counts, 0.013)
    assert thinned.sum() == pytest.approx(counts.sum() * 0.013, abs=1)
    assert (np.abs(thinned - counts * 0.013) <= 1).all()
