"""Evidence of inputs together: silent without a change, quick where only the way inputs go together has changed."""

from typing import Any

import numpy as np
import pytest

from cloud_hub.monitoring.evidence import AlarmRate
from cloud_hub.monitoring.joint import weigh_joint
from cloud_hub.monitoring.layout import Layout
from cloud_hub.monitoring.look_series import LookSeries
from cloud_hub.monitoring.strengths import TOGETHER
from cloud_hub.monitoring.verdict import group_threshold, judge, looks_since, strength
from cloud_hub.reference import count_numeric, profile_training
from modules.joint import JointMap
from modules.tensors import TensorSpec
from modules.windows import JOINT_TICK, Numeric

Array = np.ndarray[Any, np.dtype[Any]]
INPUTS, ROWS = 4, 100
RATE = AlarmRate(months=12, look_s=3600, groups=10)


class World:
    """Normal inputs; with `together` the second follows the first, and each alone looks as before."""

    def __init__(self, rows: int, seed: int, kind: str = "normal") -> None:
        self.random = np.random.default_rng(seed)
        self.kind = kind
        profile = profile_training({"x": self.draw(rows)}, {}, [TensorSpec("x", "FP64", (-1, INPUTS))], [])
        assert profile.joint is not None
        self.joint = profile.joint
        self.layout = Layout(profile)
        self._map = JointMap(profile)
        self._edges = [np.array(f.edges) for f in profile.inputs if isinstance(f, Numeric)]

    def draw(self, rows: int, together: float = 0.0) -> Array:
        values = self.random.normal(size=(rows, INPUTS))
        values[:, 1] = together * values[:, 0] + np.sqrt(1 - together**2) * values[:, 1]
        if self.kind == "t3":
            values /= np.sqrt(self.random.chisquare(3, size=(rows, 1)) / 3)
        return values

    def series(self, *spans: tuple[int, float], repeat: int = 1) -> LookSeries:
        """Spans of (looks, together); with `repeat` each row comes so often, as frames of a still scene do."""
        drawn = [
            np.repeat(self.draw(ROWS // repeat, together), repeat, axis=0) for n, together in spans for _ in range(n)
        ]
        counts = [np.concatenate([count_numeric(rows[:, i], self._edges[i]) for i in range(INPUTS)]) for rows in drawn]
        joint = []
        for rows in drawn:
            known, sums = self._map.sums(rows)
            joint.append([known, *(round(value / JOINT_TICK) for value in self._map.whitened(known, sums))])
        starts = tuple(map(float, range(len(drawn))))
        return LookSeries(starts, np.array(counts), np.zeros((len(drawn), 2 * INPUTS)), joint=np.array(joint))


@pytest.mark.parametrize("kind", ["normal", "t3"])
@pytest.mark.parametrize("rows", [1000, 10_000])
def test_nothing_alarms_while_nothing_changes(rows: int, kind: str) -> None:
    for seed in range(3):
        world = World(rows, seed, kind)
        looks = world.series((250, 0.0)).joint
        peak = max(weigh_joint(world.joint, looks[:end]).evidence.max() for end in range(1, 251))
        assert peak < group_threshold(world.layout, RATE) - 2, f"seed {seed}"


def test_inputs_that_begin_to_go_together_are_found_where_each_alone_shows_nothing() -> None:
    world = World(10_000, 3)
    series = world.series((40, 0.0), (12, 0.7))
    verdict = judge(world.layout, series, RATE)
    assert [item.name for item in verdict.drifted] == [TOGETHER]
    found = verdict.drifted[0]
    assert set(found.inputs[:2]) == {"x[0]", "x[1]"}
    assert found.distance == pytest.approx(0.4, abs=0.3)
    assert strength(world.layout, series, "drift").max() == pytest.approx(found.log_bf)
    assert looks_since(world.layout, series, found.index) == pytest.approx(12, abs=4)
    assert not judge(world.layout, series.until(40), RATE).drifted


def test_rows_that_come_ten_times_each_are_no_drift() -> None:
    world = World(10_000, 4)
    series = world.series((100, 0.0), repeat=10)
    for end in range(10, 100, 3):
        drifted = judge(world.layout, series.until(end), RATE).drifted
        assert not drifted, f"{end}: {drifted[0]}"
    verdict = judge(world.layout, series, RATE)
    assert verdict.drift[0].dispersion == pytest.approx(10, rel=0.6)


def test_a_live_reference_has_its_own_rows_and_noise() -> None:
    world = World(10_000, 5)
    before, now = world.series((60, 0.7)), world.series((30, 0.7))
    counts, joint = before.counts.sum(axis=0), before.joint.sum(axis=0)
    assert judge(world.layout, now, RATE).drifted
    assert not judge(world.layout.against(counts, joint), now, RATE).drifted
    alone = judge(world.layout.against(counts), now, RATE)
    assert TOGETHER not in [item.name for item in alone.drift], "training data is no reference of a live one"


def test_too_few_rows_say_nothing_and_huge_ones_stay_finite() -> None:
    world = World(1000, 6)
    size = world.joint.dimensions
    few = np.array([[3, *([400] * size)]])
    assert weigh_joint(world.joint, few).evidence.max() == 0
    huge = np.array([[2**40, *([2**43] * size)]])
    found = weigh_joint(world.joint, huge)
    assert np.isfinite(found.evidence).all()
    assert found.evidence.max() > 100
    assert np.isfinite(weigh_joint(world.joint, np.zeros((0, 1 + size), np.int64)).evidence).all()
