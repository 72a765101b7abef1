"""Figures against scikit-learn with the same weights, and intervals against the truth that made the data."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
)

from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.labels.figures import Figure
from cloud_hub.labels.intervals import Sums, mean_evidence, mean_interval, share_evidence, share_interval
from cloud_hub.labels.rows import NewLabel
from cloud_hub.store.engine import Store
from support.clock import SetClock
from support.labels import CLASSES, Array, Labelled, build_classifier, build_regressor, sample, scores_of

ROWS = 240


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Labelled:
    return Labelled(store, blobs, events, clock)


def sums(values: Array, weights: Array, largest: float = 0.0) -> Sums:
    w, x = weights.astype(float), values.astype(float)
    return Sums(
        len(x), w.sum(), (w**2).sum(), (w * x).sum(), (w**2 * x).sum(), (w**2 * x**2).sum(), max(largest, w.max())
    )


async def labelled_classes(hub: Labelled, clock: SetClock) -> tuple[Array, Array, Array]:
    """Scores, truths and weights of ROWS predictions in two strata, all sampled and labelled."""
    built = await build_classifier(hub.store, hub.blobs)
    rng = np.random.default_rng(17)
    scores = scores_of(rng, ROWS, 1.5)
    truths = np.array([rng.choice(3, p=row / row.sum()) for row in scores.astype(float)])
    low = scores.max(axis=1) < 0.6
    chance = np.where(low, 0.8, 0.1)
    items = [
        sample(built, f"p{i}", clock() + i, {"scores": scores[i]}, "low" if low[i] else "base", float(chance[i]))
        for i in range(ROWS)
    ]
    await hub.send("cam-1", *items[: ROWS // 2])
    await hub.send("cam-2", *items[ROWS // 2 :])
    await hub.take(*(NewLabel(f"p{i}", CLASSES[truths[i]]) for i in range(ROWS)))
    return scores, truths, 1 / chance


async def test_figures_of_classes_are_those_of_scikit_learn_with_the_weights(hub: Labelled, clock: SetClock) -> None:
    scores, truths, weights = await labelled_classes(hub, clock)
    report = await hub.report()
    assert (report.kind, report.total.rows) == ("class", ROWS)
    answers = scores.argmax(axis=1)
    assert value(report.total.accuracy) == pytest.approx(accuracy_score(truths, answers, sample_weight=weights))
    wide = scores.astype(np.float64) / scores.astype(np.float64).sum(axis=1, keepdims=True)
    assert value(report.total.log_loss) == pytest.approx(log_loss(truths, wide, sample_weight=weights), rel=1e-5)
    brier = brier_score_loss(truths, wide, sample_weight=weights, labels=[0, 1, 2], scale_by_half=False)
    assert value(report.total.brier) == pytest.approx(brier, rel=1e-5)
    precision, recall, f1, _ = precision_recall_fscore_support(truths, answers, sample_weight=weights)
    found = {one.name: one for one in report.classes}
    for place, name in enumerate(CLASSES):
        assert value(found[name].precision) == pytest.approx(precision[place])
        assert value(found[name].recall) == pytest.approx(recall[place])
        assert value(found[name].f1) == pytest.approx(f1[place])
    shares = {(one.truth, one.predicted): one.share for one in report.confusion}
    matrix = confusion_matrix(truths, answers, sample_weight=weights, normalize="all")
    assert shares == {
        (CLASSES[i], CLASSES[j]): pytest.approx(matrix[i, j]) for i in range(3) for j in range(3) if matrix[i, j]
    }


async def test_dummies_stand_beside_every_score(hub: Labelled, clock: SetClock) -> None:
    _, truths, weights = await labelled_classes(hub, clock)
    total = (await hub.report()).total
    shares = np.array([weights[truths == k].sum() for k in range(3)]) / weights.sum()
    assert total.accuracy
    assert total.log_loss
    assert total.brier
    assert total.accuracy.dummy == pytest.approx(shares.max())
    constant = np.tile(shares, (ROWS, 1))
    assert total.log_loss.dummy == pytest.approx(log_loss(truths, constant, sample_weight=weights))
    brier = brier_score_loss(truths, constant, sample_weight=weights, labels=[0, 1, 2], scale_by_half=False)
    assert total.brier.dummy == pytest.approx(brier)


async def test_calibration_is_the_weighted_gap_per_bin(hub: Labelled, clock: SetClock) -> None:
    scores, truths, weights = await labelled_classes(hub, clock)
    found = (await hub.report()).calibration
    assert found is not None
    sure, right = scores.max(axis=1).astype(float), scores.argmax(axis=1) == truths
    bins = np.minimum((sure * 10).astype(int), 9)
    ece = 0.0
    for one in found.bins:
        here = bins == round(one.low * 10)
        assert one.share == pytest.approx(weights[here].sum() / weights.sum())
        assert one.confidence == pytest.approx(np.average(sure[here], weights=weights[here]))
        assert one.accuracy.value == pytest.approx(np.average(right[here], weights=weights[here]))
        ece += one.share * abs(one.accuracy.value - one.confidence)
    assert len(found.bins) == len(set(bins))
    assert found.ece == pytest.approx(ece)
    # The labels were drawn from the scores: what gap there is, chance explains.
    assert found.ece < 2 * found.ece_by_chance


async def test_figures_of_numbers_are_those_of_scikit_learn_with_the_weights(hub: Labelled, clock: SetClock) -> None:
    built = await build_regressor(hub.store, hub.blobs, name="arm")
    rng = np.random.default_rng(4)
    truths = rng.normal(10, 3, 120)
    answers = (truths + rng.normal(0.5, 1, 120)).astype(np.float32)
    chance = np.where(rng.random(120) < 0.5, 1.0, 0.05)
    await hub.send(
        "arm-1",
        *(
            sample(built, f"p{i}", clock() + i, {"place": (answers[i], 0.0)}, "base", float(chance[i]))
            for i in range(120)
        ),
    )
    await hub.take(*(NewLabel(f"p{i}", [float(truths[i]), None]) for i in range(120)))
    report = await hub.report("arm")
    assert (report.output, report.kind, report.estimate) == ("place[0]", "number", None)
    weights, total = 1 / chance, report.total
    assert value(total.mae) == pytest.approx(mean_absolute_error(truths, answers, sample_weight=weights))
    squares = mean_squared_error(truths, answers, sample_weight=weights)
    assert value(total.rmse) == pytest.approx(math.sqrt(squares))
    assert value(total.bias) == pytest.approx(np.average(answers - truths, weights=weights))
    mean = np.average(truths, weights=weights)
    assert total.mae
    assert total.rmse
    assert total.mae.dummy == pytest.approx(np.average(np.abs(truths - mean), weights=weights))
    assert total.rmse.dummy == pytest.approx(math.sqrt(np.average((truths - mean) ** 2, weights=weights)))


def value(figure: Figure | None) -> float:
    assert figure is not None
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= figure.value <= figure.high
    return figure.value


CHECKS = np.unique(np.geomspace(5, 1000, 25).astype(int))


@pytest.mark.parametrize(
    ("low_share", "weights", "rates"),
    [(0.0, (1.0, 1.0), (0.7, 0.95)), (0.5, (1.0, 20.0), (0.6, 0.97)), (0.9, (1.0, 100.0), (0.6, 0.97))],
    ids=["plain", "two strata", "one stratum nearly alone"],
)
def test_an_interval_of_a_share_holds_at_every_look(
    low_share: float, weights: Sequence[float], rates: Sequence[float]
) -> None:
    rng = np.random.default_rng(11)
    shares = np.array([low_share, 1 - low_share]) * weights
    truth = float(shares @ rates / shares.sum())
    missed = 0
    for _ in range(120):
        low = rng.random(1000) < low_share
        hits = rng.random(1000) < np.where(low, *rates)
        w = np.where(low, *weights)
        missed += any(not inside(share_interval(sums(hits[:n], w[:n], max(weights))), truth) for n in CHECKS)
    assert missed <= 9  # of 120: 5 % and what chance adds


def test_an_interval_of_a_mean_holds_at_every_look() -> None:
    rng = np.random.default_rng(12)
    missed = 0
    for _ in range(120):
        w = np.where(rng.random(1000) < 0.5, 1.0, 20.0)
        x = np.abs(rng.normal(size=1000))
        missed += any(not inside(mean_interval(sums(x[:n], w[:n], 20.0)), math.sqrt(2 / math.pi)) for n in CHECKS)
    assert missed <= 10


def inside(interval: tuple[float, float] | None, truth: float) -> bool:
    assert interval is not None
    return interval[0] <= truth <= interval[1]


def test_an_interval_narrows_with_rows_and_widens_with_weights() -> None:
    rng = np.random.default_rng(13)
    hits = rng.random(4000) < 0.9
    few, many = (share_interval(sums(hits[:n], np.ones(n))) for n in (100, 4000))
    uneven = share_interval(sums(hits, np.where(rng.random(4000) < 0.5, 1.0, 50.0)))
    assert few
    assert many
    assert uneven
    assert few[1] - few[0] > uneven[1] - uneven[0] > many[1] - many[0]


def test_evidence_against_a_bound_is_rare_where_it_is_kept_and_grows_where_it_is_not() -> None:
    rng = np.random.default_rng(14)
    ones = np.ones(1000)
    wrong = [sums(rng.random(1000) < 0.1, ones) for _ in range(300)]
    assert sum(share_evidence(one, 0.1, above=True) > math.log(100) for one in wrong) <= 5
    assert np.median([share_evidence(one, 0.05, above=True) for one in wrong]) > 10
    assert all(share_evidence(one, 0.2, above=True) == 0.0 for one in wrong)
    sizes = [sums(rng.exponential(1.0, 1000), ones) for _ in range(300)]
    assert sum(mean_evidence(one, 1.0) > math.log(100) for one in sizes) <= 5
    assert all(mean_evidence(one, 0.7) > 10 for one in sizes)


async def test_labels_of_a_stratum_that_is_sampled_in_full_say_little_of_the_rest(
    hub: Labelled, clock: SetClock
) -> None:
    """One in a hundred is sampled of the others, and none of those is labelled: each would weigh a hundredfold."""
    built = await build_classifier(hub.store, hub.blobs, rate=0.01)
    items = [sample(built, f"p{i}", clock() + i, {"scores": (0.5, 0.4, 0.1)}, "low", 1.0) for i in range(40)]
    await hub.send("cam-1", *items, sample(built, "base", clock(), {"scores": (0.9, 0.1, 0.0)}, "base", 0.01))
    await hub.take(*(NewLabel(f"p{i}", "dog") for i in range(40)))
    before = (await hub.report()).total.accuracy
    assert before is not None
    assert (before.value, before.effective < 3) == (0.0, True)
    assert before.high is not None
    assert before.high > 0.5
    await hub.take(NewLabel("base", "cat"))
    after = (await hub.report()).total.accuracy
    assert after is not None
    assert after.value == pytest.approx(100 / 140)


def test_nothing_labelled_has_no_figures_and_one_row_no_spread() -> None:
    assert share_interval(Sums()) is None
    assert mean_interval(sums(np.ones(1), np.ones(1))) is None
    assert mean_evidence(sums(np.ones(5), np.ones(5)), 0.5) == 0.0


async def test_parts_are_by_device_tag_day_profile_and_version(
    hub: Labelled, clock: SetClock, store: Store, blobs: Blobs
) -> None:
    from types import SimpleNamespace

    from support.fleets import add_device

    await labelled_classes(hub, clock)
    rooms: Any = SimpleNamespace(store=store, clock=clock)
    await add_device(rooms, "cam-1", {"site": "north"})
    await add_device(rooms, "cam-2", {})
    second = await build_classifier(store, blobs, version=2)
    clock.advance(2 * 86_400)
    await hub.send("cam-2", sample(second, "q", clock(), {"scores": (0.7, 0.2, 0.1)}))
    await hub.take(NewLabel("q", "cat"))

    async def parts(by: str, version: int = 1) -> dict[str, int]:
        return {part.name: part.rows for part in (await hub.report(version=version, by=by)).parts}

    assert await parts("device") == {"cam-1": 120, "cam-2": 120}
    assert await parts("site") == {"(unknown)": 120, "north": 120}
    assert await parts("day") == {"2023-11-14": ROWS}
    assert await parts("version", 0) == {"1": ROWS, "2": 1}
    assert (await hub.report()).versions == (2,)  # the newest that has labels
    assert (await hub.report(version=1, device="cam-1")).total.rows == 120
    assert (await hub.report(version=1, since=clock() - 3600)).total.rows == 0
