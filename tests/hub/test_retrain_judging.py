"""Criteria in the user's words, and bounds that small held-out sets cannot pass by luck."""

import numpy as np
import pytest

from cloud_hub.retraining.bounds import bootstrap_at_least, effective_rows, mean_at_least
from cloud_hub.retraining.criteria import parse_criterion
from cloud_hub.retraining.figures import Scored
from cloud_hub.retraining.judging import judge
from cloud_hub.retraining.plan import Judging

RANDOM = np.random.default_rng(17)
SHARE = 400


@pytest.fixture(autouse=True)
def _the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a test runs alone."""
    monkeypatch.setitem(globals(), "RANDOM", np.random.default_rng(17))


def scored(
    truth: np.ndarray, candidate: np.ndarray, champion: np.ndarray, *, classes: bool = True, **groups: tuple[str, ...]
) -> Scored:
    def errors(answers: np.ndarray) -> np.ndarray:
        return np.asarray((answers != truth).astype(float) if classes else answers - truth)

    weights = np.ones(len(truth))
    names = ("a", "b", "c") if classes else ()
    return Scored(weights, truth, candidate, champion, errors(candidate), errors(champion), names, classes, groups)


def spoiled(truth: np.ndarray, share: float) -> np.ndarray:
    """Wrong on about this share of the rows."""
    wrong = RANDOM.random(len(truth)) < share
    return np.where(wrong, (truth + 1) % 3, truth)


def classes(rows: int) -> np.ndarray:
    return RANDOM.integers(0, 3, rows).astype(float)


def test_a_bound_on_a_mean_is_rarely_wrong_for_any_number_of_rows() -> None:
    for rows in (5, 30, 200):
        wrong = sum(
            mean_at_least((RANDOM.random(rows) < 0.7).astype(float), np.ones(rows), 0.0, 0.95) > 0.7 for _ in range(200)
        )
        assert wrong <= 0.1 * 200


def test_a_bound_on_a_mean_nears_the_mean_with_more_rows() -> None:
    few, many = (mean_at_least((RANDOM.random(n) < 0.9).astype(float), np.ones(n), 0.0, 0.95) for n in (20, 2000))
    assert 0.3 < few < 0.9
    assert 0.86 < many < 0.92


def test_three_rows_prove_nothing_even_when_all_are_right() -> None:
    assert mean_at_least(np.ones(3), np.ones(3), -1.0, 0.95) < 0.0
    assert mean_at_least(np.ones(100), np.ones(100), -1.0, 0.95) > 0.8


def test_a_bound_counts_rows_by_their_weight() -> None:
    values, weights = np.array([1.0] * 200 + [0.0] * 100), np.array([1.0] * 200 + [4.0] * 100)
    assert mean_at_least(values, weights, 0.0, 0.95) < 1 / 3
    assert effective_rows(weights) < 300


def test_a_bootstrapped_bound_is_rarely_wrong() -> None:
    wrong = 0
    for _ in range(40):
        values = RANDOM.standard_t(4, 60)
        wrong += bootstrap_at_least(lambda rows, values=values: float(values[rows].mean()), 60, 0.95) > 0  # type: ignore[misc]
    assert wrong <= 6


@pytest.mark.parametrize(
    ("text", "bound", "champion", "label", "group"),
    [
        ("accuracy >= 0.9", 0.9, False, "", ""),
        ("accuracy >= champion - 0.01", -0.01, True, "", ""),
        ("recall[seven] > champion", 0.0, True, "seven", ""),
        ("recall per class >= 0.5", 0.5, False, "", "class"),
        ("accuracy per device >= champion - 0.05", -0.05, True, "", "device"),
        ("mae <= champion + 0.2", 0.2, True, "", ""),
        ("rmse < 3", 3.0, False, "", ""),
    ],
)
def test_criteria_are_read(text: str, bound: float, champion: bool, label: str, group: str) -> None:
    found = parse_criterion(text)
    assert (found.bound, found.champion, found.label, found.group) == (bound, champion, label, group)


@pytest.mark.parametrize(
    "text",
    ["", "better", "accuracy <= 0.9", "mae >= 1", "recall >= 0.5", "accuracy >= 1.2.3", "auc >= 0.5", "f1[a] > 0"],
)
def test_what_is_no_criterion_is_refused_with_its_words(text: str) -> None:
    with pytest.raises(ValueError, match="accept"):
        parse_criterion(text)


def test_a_better_candidate_is_accepted_and_a_worse_one_is_not() -> None:
    truth = classes(SHARE)
    good, bad = spoiled(truth, 0.05), spoiled(truth, 0.3)
    judging = Judging(
        ("accuracy > champion", "accuracy >= 0.85", "recall per class >= champion - 0.1", "f1 > champion")
    )
    better = judge(scored(truth, good, bad), judging)
    assert better.accepted, better.why
    assert better.candidate["accuracy"] > better.champion["accuracy"]
    worse = judge(scored(truth, bad, good), judging)
    assert not worse.accepted
    assert "accuracy > champion: sure of" in worse.why


def test_the_same_model_again_is_not_better_but_no_worse() -> None:
    truth = classes(SHARE)
    same = spoiled(truth, 0.1)
    assert not judge(scored(truth, same, same), Judging(("accuracy > champion",))).accepted
    assert judge(scored(truth, same, same), Judging(("accuracy >= champion - 0.02",))).accepted


def test_with_too_few_rows_nothing_is_shown() -> None:
    truth = classes(20)
    verdict = judge(scored(truth, truth, spoiled(truth, 0.9)), Judging(("accuracy > champion",)))
    assert not verdict.accepted
    assert "expected at least 50 labelled rows" in verdict.why


def test_a_candidate_that_fails_one_class_or_one_device_is_refused() -> None:
    truth = classes(SHARE)
    champion = spoiled(truth, 0.3)
    blind = np.where(truth == 2, 1.0, truth)
    verdict = judge(scored(truth, blind, champion), Judging(("recall per class >= champion - 0.05",)))
    assert [finding.group for finding in verdict.findings if not finding.holds] == ["c"]
    devices = tuple("cam-1" if row % 4 else "cam-2" for row in range(SHARE))
    broken = np.where(np.array(devices) == "cam-2", (truth + 1) % 3, truth)
    verdict = judge(
        scored(truth, broken, champion, device=devices), Judging(("accuracy per device >= champion - 0.05",))
    )
    assert [finding.group for finding in verdict.findings if not finding.holds] == ["cam-2"]


def test_a_group_with_few_rows_is_not_judged_and_says_so() -> None:
    truth = classes(SHARE)
    devices = tuple("rare" if row < 5 else "often" for row in range(SHARE))
    judging = Judging(("accuracy per device >= 0.8",))
    verdict = judge(scored(truth, spoiled(truth, 0.02), truth, device=devices), judging)
    assert verdict.accepted
    assert [(finding.group, bool(finding.why)) for finding in verdict.findings] == [("often", False), ("rare", True)]
    alone = tuple(f"d{row}" for row in range(SHARE))
    assert not judge(scored(truth, truth, truth, device=alone), judging).accepted


def test_numbers_are_judged_by_their_errors() -> None:
    truth = RANDOM.normal(size=SHARE)
    good, bad = truth + RANDOM.normal(0, 0.1, SHARE), truth + RANDOM.normal(0, 0.5, SHARE)
    assert judge(scored(truth, good, bad, classes=False), Judging(("mae < champion", "rmse <= 0.2"))).accepted
    assert not judge(scored(truth, bad, good, classes=False), Judging(("mae <= champion + 0.1",))).accepted
    wrong = judge(scored(truth, good, bad, classes=False), Judging(("accuracy > 0.5",)))
    assert "the output is of numbers" in wrong.why
