"""Windows read as arrays hold what they hold read one by one, and nothing that does not fit gets in."""

import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_hub.monitoring.integers import pack, unpack, unpack_rows
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.merging import MAX_ROWS, stack
from cloud_hub.monitoring.tallies import TICK
from cloud_hub.monitoring.varints import signed, unpack_many
from cloud_hub.reference import profile_training
from modules.errors import WindowError
from modules.tensors import TensorSpec
from modules.windows import (
    LATENCY_BINS,
    ReferenceProfile,
    Window,
    pack_counts,
    pack_joint,
    pack_signed,
    unpack_counts,
    unpack_joint,
)

RANDOM = np.random.default_rng(3)
FEATURES = 5


@pytest.fixture(scope="module")
def profile() -> ReferenceProfile:
    specs = [TensorSpec("x", "FP64", (-1, FEATURES))]
    return profile_training({"x": RANDOM.normal(size=(400, FEATURES))}, {}, specs, [])


def window(profile: ReferenceProfile, rows: int, **changes: Any) -> Window:
    """With counts of every size that add up to no more than the rows."""
    counts = [int(rows * share) for f in profile.features for share in RANDOM.dirichlet(np.ones(f.cells))]
    latency = [0] * LATENCY_BINS
    latency[3] = rows
    made = Window(
        "m", "a", "b", 0.0, 1.0, rows, 0, 0, pack_counts(counts),
        RANDOM.normal(size=2 * FEATURES).astype("<f4").tobytes(), pack_counts(latency),
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def test_many_windows_hold_what_each_holds(profile: ReferenceProfile) -> None:
    dimensions = profile.joint.dimensions if profile.joint else 0
    assert dimensions
    made = []
    for rows in (0, 1, 100, 127, 128, 20_000, 3_000_000, MAX_ROWS):
        sums = (RANDOM.normal(size=dimensions) * min(rows, 10**6) ** 0.5).tolist()
        made += [window(profile, rows), window(profile, rows, joint=pack_joint(rows, sums), late=rows, clock_jumps=2)]
    stacked, places, refused = stack(made, Layout(profile))
    assert (places, refused) == (list(range(len(made))), {})
    for place, one in enumerate(made):
        tally = stacked.one(place)
        assert (tally.windows, tally.rows, tally.late, tally.clock_jumps) == (1, one.rows, one.late, one.clock_jumps)
        assert tally.counts.tolist() == unpack_counts(one.counts, profile.cells)
        assert tally.latency.tolist() == unpack_counts(one.latency, LATENCY_BINS)
        rows, sums = unpack_joint(one.joint, dimensions) if one.joint else (0, [0] * dimensions)
        assert tally.joint.tolist() == [rows, *sums]
        assert np.abs(tally.moments * TICK - np.frombuffer(one.moments, "<f4")).max() <= TICK / 2
    both = stacked.total([2, 3])
    assert both.counts.tolist() == (stacked.one(2) + stacked.one(3)).counts.tolist()


def test_which_features_stood_still_is_counted_per_feature(profile: ReferenceProfile) -> None:
    made = [window(profile, 50, still=bits) for bits in (b"", b"\x01", b"\x13")]
    stacked, _, refused = stack([*made, window(profile, 50, still=b"\x01\x01")], Layout(profile))
    assert stacked.total().still.tolist() == [2, 1, 0, 0, 1]
    assert list(refused) == [3]


def test_private_windows_have_signs_and_the_sum_says_how_much_noise_is_in_it(profile: ReferenceProfile) -> None:
    noisy = [-7, 30] * (profile.cells // 2) + [0] * (profile.cells % 2)
    private = window(profile, 100, counts=pack_signed(noisy), noise=900.0, rho=0.1, moments=b"", latency=b"")
    stacked, _, refused = stack([private, window(profile, 100), private], Layout(profile))
    assert refused == {}
    assert stacked.one(0).counts.tolist() == noisy
    assert stacked.total().noise * TICK == 1800.0
    far = msgspec.structs.replace(private, counts=pack_signed([2**39, *noisy[1:]]))
    assert list(stack([far], Layout(profile))[2]) == [0], "no such noise is ever drawn"


def _spoilt(profile: ReferenceProfile) -> dict[str, Callable[[], Window]]:
    cells = profile.cells
    raw = bytes(cells)
    deflated = zlib.compress
    return {
        "cut short": lambda: window(profile, 9, counts=deflated(raw)[:-6]),
        "not deflated": lambda: window(profile, 9, counts=raw),
        "nothing": lambda: window(profile, 9, counts=b""),
        "one cell too few": lambda: window(profile, 9, counts=deflated(raw[1:])),
        "one cell too many": lambda: window(profile, 9, counts=deflated(raw + b"\0")),
        "the last number without an end": lambda: window(profile, 9, counts=deflated(raw[:-1] + b"\x80")),
        "a number of ten bytes": lambda: window(profile, 9, counts=deflated(b"\x80" * 9 + b"\x01" + raw[1:])),
        "2^62": lambda: window(profile, 9, counts=pack_counts([2**62] * cells)),
        "a bomb": lambda: window(profile, 9, counts=deflated(bytes(50_000_000), 9)),
        "more than rows": lambda: window(profile, 9, counts=pack_counts([10] + [0] * (cells - 1))),
        "negative rows": lambda: msgspec.structs.replace(window(profile, 9), rows=-1),
        "rows beyond": lambda: msgspec.structs.replace(window(profile, 9), rows=2**63),
        "late beyond": lambda: window(profile, 9, late=-1),
        "no noise that is one": lambda: window(profile, 9, noise=float("nan")),
        "endless noise": lambda: window(profile, 9, noise=float("inf")),
        "moments cut": lambda: window(profile, 9, moments=b"1234"),
        "latency cut": lambda: window(profile, 9, latency=pack_counts([1])),
        "joint of more rows": lambda: window(profile, 9, joint=pack_joint(10, [0.0] * _dimensions(profile))),
        "joint sums beyond": lambda: window(profile, 9, joint=pack_joint(9, [1e6] * _dimensions(profile))),
        "joint of less": lambda: window(profile, 9, joint=pack_joint(9, [1.0])),
    }


def _dimensions(profile: ReferenceProfile) -> int:
    return profile.joint.dimensions if profile.joint else 0


@pytest.mark.parametrize("what", _spoilt(ReferenceProfile(0, ())))
def test_what_does_not_fit_is_refused_and_its_neighbours_are_not(profile: ReferenceProfile, what: str) -> None:
    before, after = window(profile, 30), window(profile, 3000)
    stacked, places, refused = stack([before, _spoilt(profile)[what](), after], Layout(profile))
    assert (places, list(refused)) == ([0, 2], [1])
    assert refused[1].startswith("expected")
    assert stacked.total().rows == 3030
    assert stacked.total().counts.sum() == sum(sum(unpack_counts(w.counts, profile.cells)) for w in (before, after))


def test_a_module_without_a_reference_has_windows_too() -> None:
    profile = ReferenceProfile(0, ())
    plain = Window("m", "a", "", 0.0, 1.0, 7, 0, 0, pack_counts([]), b"", pack_counts([0] * LATENCY_BINS))
    stacked, _, refused = stack([plain, msgspec.structs.replace(plain, counts=pack_counts([1]))], Layout(profile))
    assert (stacked.total().rows, list(refused)) == (7, [1])


def test_random_bytes_are_read_as_one_by_one() -> None:
    for _ in range(300):
        raws = [RANDOM.integers(0, 256, RANDOM.integers(0, 14)).astype(np.uint8).tobytes() for _ in range(5)]
        packed = [zlib.compress(raw) for raw in raws]
        counts, fits = unpack_many(packed, 3)
        for row, data in enumerate(packed):
            try:
                expected = unpack_counts(data, 3)
            except WindowError:
                assert not fits[row]
            else:
                assert fits[row]
                assert counts[row].tolist() == expected


def test_signs_come_back() -> None:
    values = [0, 1, -1, 2, -2, 2**40, -(2**40)]
    counts, _ = unpack_many([pack_signed(values)], len(values))
    assert signed(counts)[0].tolist() == values


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 15, 16, 260])
@pytest.mark.parametrize("most", [0, 127, 128, 40_000, 2**31, 2**62])
def test_columns_of_numbers_come_back_in_both_forms(size: int, most: int) -> None:
    values = RANDOM.integers(-most, most + 1, size)
    assert unpack(pack(values)).tolist() == values.tolist()
    assert len(pack(values)) % 8 != 0
    assert unpack(values.astype("<i8").tobytes()).tolist() == values.tolist()


def test_rows_of_both_forms_and_lengths_stand_in_one_matrix() -> None:
    rows = [np.array([1, -2, 3]), np.array([300, 4, 5]), np.array([7, 8, 2**40])]
    packed = [pack(rows[0]), None, pack(rows[1]), rows[2].astype("<i8").tobytes(), pack(rows[0])]
    expected = [[1, -2, 3], [0, 0, 0], [300, 4, 5], [7, 8, 2**40], [1, -2, 3]]
    assert unpack_rows(packed).tolist() == expected
    assert unpack_rows(packed, 4)[:, 3].tolist() == [0] * 5
    assert unpack_rows([], 3).shape == (0, 3)
