"""Windows: counts pack exactly, and profiles that contradict themselves cannot be built."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.errors import WindowError
from modules.projection import TERMS, projection
from modules.windows import (
    JOINT_MOST,
    JOINT_TICK,
    Categorical,
    Numeric,
    ReferenceProfile,
    Window,
    decode_reference,
    decode_window,
    encode_reference,
    encode_window,
    pack_counts,
    pack_joint,
    unpack_counts,
    unpack_joint,
)


@given(st.lists(st.integers(min_value=0, max_value=2**62), max_size=60))
def test_counts_survive_packing(counts: list[int]) -> None:
    assert unpack_counts(pack_counts(counts), len(counts)) == counts


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=50))
def test_arbitrary_bytes_are_counts_or_a_window_error(data: bytes, cells: int) -> None:
    for raw in (data, zlib.compress(data)):
        try:
            assert len(unpack_counts(raw, cells)) == cells
        except WindowError:
            continue


def test_a_deflate_bomb_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    with pytest.raises(WindowError, match="expected 20 cells"):
        unpack_counts(bomb, 20)


def test_a_hundred_rows_of_twenty_features_fit_in_a_kilobyte() -> None:
    counts = [count for _ in range(20) for count in (9, 11, 10, 8, 12, 10, 10, 9, 11, 10, 0, 0, 0)]
    assert len(pack_counts(counts)) < 500


numeric = Numeric("pixel", "x", (0.0, 1.0, 2.0), (5, 5, 0, 0, 0), mean=1.0, scale=0.5)
digit = Categorical("digit", "label", ("0", "1"), (6, 4, 0, 0))


def test_a_reference_profile_survives_and_is_canonical() -> None:
    profile = ReferenceProfile(10, (numeric,), (digit,))
    assert decode_reference(encode_reference(profile)) == profile
    assert encode_reference(decode_reference(encode_reference(profile))) == encode_reference(profile)
    assert profile.cells == 9


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ({"edges": (2.0, 1.0)}, "ascending"),
        ({"edges": (1.0,)}, "two ascending"),
        ({"scale": 0.0}, "scale above 0"),
        ({"scale": float("nan")}, "scale above 0"),
        ({"counts": (1, 2)}, "expected 5 counts"),
        ({"counts": (1, 2, -1, 0, 0)}, "at least 0"),
        ({"index": -1}, "index of at least 0"),
    ],
)
def test_a_contradicting_feature_is_refused(spoiled: dict[str, object], words: str) -> None:
    fields: dict[str, object] = {
        "name": "pixel",
        "tensor": "x",
        "edges": (0.0, 1.0, 2.0),
        "counts": (5, 5, 0, 0, 0),
        "mean": 1.0,
        "scale": 1.0,
    }
    with pytest.raises(WindowError, match=words):
        Numeric(**(fields | spoiled))  # type: ignore[arg-type]


def test_categories_must_differ() -> None:
    with pytest.raises(WindowError, match="differ"):
        Categorical("digit", "label", ("0", "0"), (1, 1, 0, 0))


def test_a_window_survives_the_wire() -> None:
    window = Window("digits", "a" * 64, "b" * 64, 1.0, 2.0, 10, 0, 1, pack_counts([1]), b"", pack_counts([0] * 32))
    assert decode_window(encode_window(window)) == window
    with pytest.raises(WindowError, match="window"):
        decode_window(b"junk")


@given(st.integers(0, 2**40), st.lists(st.floats(-4000, 4000), max_size=64))
def test_joint_sums_come_back_to_the_tick(rows: int, means: list[float]) -> None:
    sums = [mean * rows for mean in means]
    back, ticks = unpack_joint(pack_joint(rows, sums), len(sums))
    assert back == rows
    assert all(abs(tick * JOINT_TICK - value) <= JOINT_TICK * 0.501 for tick, value in zip(ticks, sums, strict=True))


@given(st.binary(max_size=100), st.integers(0, 20))
def test_any_bytes_are_joint_sums_or_are_refused(data: bytes, dimensions: int) -> None:
    for raw in (data, zlib.compress(data)):
        try:
            assert len(unpack_joint(raw, dimensions)[1]) == dimensions
        except WindowError:
            continue


def test_sums_that_so_few_rows_cannot_have_are_refused() -> None:
    assert unpack_joint(pack_joint(2, [2 * JOINT_MOST]), 1) == (2, [round(2 * JOINT_MOST / JOINT_TICK)])
    with pytest.raises(WindowError, match="expected sums of at most 65536 for 2 rows"):
        unpack_joint(pack_joint(2, [-2 * JOINT_MOST - JOINT_TICK]), 1)


def test_a_reference_with_a_new_way_to_take_a_number_says_that_old_agents_cannot_read_it() -> None:
    old = Numeric("x", "x", (0.0, 1.0), (1, 0, 0, 0), 0.5, 1.0)
    assert ReferenceProfile(1, (old,)).is_plain
    new = Numeric("x.sharpness", "x", (0.0, 1.0), (1, 0, 0, 0), 0.5, 1.0, "sharpness", axes=(-2, -1))
    profile = ReferenceProfile(1, (old, new))
    assert not profile.is_plain
    assert decode_reference(encode_reference(profile)) == profile


def test_a_projection_is_the_same_everywhere() -> None:
    places, weights = projection(3, 1000)
    assert places[:4] == [597, 13, 941, 128]
    assert [weight * 16 for weight in weights[:4]] == [-1, 1, -1, -1]
    assert len(places) == len(weights) == TERMS
    assert all(0 <= place < 1000 for place in places)
    assert projection(4, 1000) != (places, weights) != projection(3, 1001)
