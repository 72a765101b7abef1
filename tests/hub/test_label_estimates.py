"""Quality without labels: from the confidences of all rows, marked as an estimate, and held against labels."""

import numpy as np
import pytest
from sqlalchemy import update

from cloud_hub.blobs import Blobs
from cloud_hub.events import Events
from cloud_hub.labels.estimate import Estimate, NoEstimate
from cloud_hub.labels.rows import NewLabel
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import looks
from support.clock import SetClock
from support.labels import CLASSES, Array, Labelled, build_classifier, build_regressor, sample, scores_of, window
from support.monitoring import Built

DAY = 86_400.0
PER_DAY = 4000


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Labelled:
    clock.now = 19_700 * DAY + 3600.0
    return Labelled(store, blobs, events, clock)


@pytest.fixture
async def built(store: Store, blobs: Blobs) -> Built:
    return await build_classifier(store, blobs)


async def one_day(
    hub: Labelled, built: Built, clock: SetClock, rng: np.random.Generator, labels: int, **how: float
) -> float:
    """A day's predictions, all counted, some labelled; the accuracy that they had. Then the day is over.

    `sureness` of the answers; the truth follows the scores to the power of `honesty` (1: as they say).
    """
    scores = scores_of(rng, PER_DAY, how.get("sureness", 4.0))
    truths = drawn(rng, scores, how.get("honesty", 1.0))
    await hub.send("cam-1", window(built, scores, clock()))
    picked = rng.choice(PER_DAY, labels, replace=False)
    day = int(clock() // DAY)
    if labels:
        items = [sample(built, f"{day}-{i}", clock(), {"scores": scores[i]}, "base", 0.05) for i in picked]
        await hub.send("cam-1", *items)
        await hub.take(*(NewLabel(f"{day}-{i}", CLASSES[truths[i]]) for i in picked))
    clock.advance(DAY)
    return float((scores.argmax(axis=1) == truths).mean())


def drawn(rng: np.random.Generator, scores: Array, honesty: float) -> Array:
    shares = scores.astype(float) ** honesty
    ends = np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)
    return np.asarray(np.minimum((rng.random((len(scores), 1)) > ends).sum(axis=1), len(CLASSES) - 1))


async def estimated(hub: Labelled, device: str = "") -> Estimate:
    found = (await hub.report(device=device)).estimate
    assert isinstance(found, Estimate), found
    assert found.estimated
    return found


async def test_looks_with_private_windows_are_no_part_of_an_estimate(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    rng = np.random.default_rng(1)
    await one_day(hub, built, clock, rng, labels=0)
    second = clock() - 60.0
    await one_day(hub, built, clock, rng, labels=0)
    assert (await estimated(hub)).rows == 2 * PER_DAY
    async with store.write() as connection:
        await connection.execute(update(looks).where(looks.c.start >= second).values(noise=1))
    assert (await estimated(hub)).rows == PER_DAY


async def test_without_a_label_the_confidences_are_believed_and_it_says_so(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    truth = await one_day(hub, built, clock, np.random.default_rng(1), labels=0)
    found = await estimated(hub)
    assert found.accuracy == pytest.approx(truth, abs=0.02)
    assert (found.basis, found.calibrated_on, found.low, found.check, found.rows) == (
        "confidence",
        0,
        None,
        None,
        PER_DAY,
    )
    report = await hub.report()
    assert (report.total.rows, report.total.accuracy, report.output) == (0, None, "scores")


async def test_less_sure_answers_lower_the_estimate_before_any_label_comes(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    rng = np.random.default_rng(2)
    before = await one_day(hub, built, clock, rng, labels=0)
    after = await one_day(hub, built, clock, rng, labels=0, sureness=1.0)
    first, second = (await estimated(hub)).days
    assert before - after > 0.15
    assert first.accuracy == pytest.approx(before, abs=0.02)
    assert second.accuracy == pytest.approx(after, abs=0.06)  # cells are of the training data: coarse down there


async def test_labels_teach_what_the_confidences_of_a_boaster_mean(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    rng = np.random.default_rng(3)
    truths = [await one_day(hub, built, clock, rng, labels=250, honesty=0.3) for _ in range(4)]
    found = await estimated(hub)
    assert found.days[0].accuracy - truths[0] > 0.08  # nothing but boasting on the first day
    assert found.days[-1].accuracy == pytest.approx(truths[-1], abs=0.03)
    assert found.basis == "labels"
    assert found.low is not None
    assert found.high is not None
    assert found.low <= np.mean(truths) <= found.high
    assert found.check is not None
    assert (found.check.labels, found.check.coverage) == (1000, 1000 / (4 * PER_DAY))
    assert [day.labels for day in found.days] == [250] * 4


async def test_an_honest_model_raises_no_warning_and_a_change_of_concept_does(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    rng = np.random.default_rng(4)
    for _ in range(3):
        await one_day(hub, built, clock, rng, labels=200)
    found = await estimated(hub)
    assert found.check is not None
    assert not found.check.significant
    # As sure as before, and wrong: no confidence tells, the labels do.
    since = clock()
    wrong = await one_day(hub, built, clock, rng, labels=200, honesty=0.0)
    later = await estimated(hub)
    assert later.days[-1].accuracy - wrong > 0.3
    assert later.days[-1].labelled_accuracy == pytest.approx(wrong, abs=0.1)
    assert later.check is not None
    assert later.check.significant
    assert later.check.gap < -0.05
    assert since // DAY == later.days[-1].day


async def test_an_estimate_of_one_device_is_of_its_own_rows(hub: Labelled, built: Built, clock: SetClock) -> None:
    await hub.send("cam-1", window(built, scores_of(np.random.default_rng(5), 500, 1.0), clock()))
    await hub.send("cam-2", window(built, scores_of(np.random.default_rng(6), 300, 9.0), clock()))
    one, two, both = [await estimated(hub, device=device) for device in ("cam-1", "cam-2", "")]
    assert (one.rows, two.rows, both.rows) == (500, 300, 800)
    assert one.accuracy < both.accuracy < two.accuracy


async def test_where_nothing_can_be_estimated_it_says_why(
    hub: Labelled, built: Built, store: Store, blobs: Blobs
) -> None:
    await build_classifier(store, blobs, name="plain", reference=False)
    await build_regressor(store, blobs, name="arm")
    nothing = (await hub.report()).estimate
    assert isinstance(nothing, NoEstimate)
    assert "no predictions have been counted" in nothing.reason
    plain = (await hub.report("plain")).estimate
    assert isinstance(plain, NoEstimate)
    assert "without a reference" in plain.reason
    assert (await hub.report("arm")).estimate is None
