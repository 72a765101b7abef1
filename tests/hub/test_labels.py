"""Labels meet samples: late, early, corrected, partial, ambiguous; joined once, whatever came first."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, select

from cloud_hub.blobs import Blobs
from cloud_hub.config import HubConfig
from cloud_hub.events import Events
from cloud_hub.labels.book import current_labels
from cloud_hub.labels.rows import LabelQuery, LabelsTaken, NewLabel
from cloud_hub.retention import Retention
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import events as events_table
from cloud_hub.store.tables import labels, outcomes, samples
from modules.messages import Batch, encode
from modules.tensors import TensorSpec
from support.clock import SetClock
from support.labels import CLASSES, Labelled, build, build_classifier, build_regressor, sample, scores_of
from support.monitoring import Built

SURE_CAT = (0.8, 0.1, 0.1)
Rows = list[tuple[Any, ...]]


@pytest.fixture
async def built(store: Store, blobs: Blobs) -> Built:
    return await build_classifier(store, blobs)


@pytest.fixture
def hub(store: Store, blobs: Blobs, events: Events, clock: SetClock) -> Labelled:
    return Labelled(store, blobs, events, clock)


async def joined(store: Store) -> Rows:
    """Every outcome: prediction, device, output, what was answered, what is true, weight."""
    c = outcomes.c
    columns = (c.prediction_id, c.device, c.manifest_sha256, c.output, c.predicted, c.truth, c.error, c.weight)
    async with store.read() as connection:
        return sorted(tuple(row) for row in await connection.execute(select(*columns)))


async def states(store: Store) -> list[tuple[str, str, str]]:
    c = labels.c
    query = select(c.prediction_id, c.state, c.reason).where(c.replaced_at.is_(None)).order_by(c.id)
    async with store.read() as connection:
        return [tuple(row) for row in await connection.execute(query)]


async def test_a_label_by_name_and_one_by_place_are_joined_with_weight_one_over_probability(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}, probability=0.25))
    await hub.send("cam-1", sample(built, "b", clock(), {"scores": SURE_CAT}, "low_confidence", 1.0))
    taken = await hub.take(NewLabel("a", "cat"), NewLabel("b", 2))
    assert taken == LabelsTaken(accepted=2)
    assert await joined(store) == [
        ("a", "cam-1", built.manifest_sha256, "scores", 0.0, 0.0, 0.0, 4.0),
        ("b", "cam-1", built.manifest_sha256, "scores", 0.0, 2.0, 1.0, 1.0),
    ]


async def test_a_label_that_comes_before_its_sample_waits_and_is_joined_once(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    assert await hub.take(NewLabel("a", "dog")) == LabelsTaken(waiting=1)
    assert (await joined(store), await states(store)) == ([], [("a", "waiting", "")])
    given = sample(built, "a", clock(), {"scores": SURE_CAT})
    await hub.send("cam-1", given)
    assert [(row[0], row[6]) for row in await joined(store)] == [("a", 1.0)]
    assert await states(store) == [("a", "joined", "")]
    # The same batch again, and the same sample under a new epoch, as after a lost database.
    batch = Batch("sample", "life", 0, ((1, encode(given)),))
    await hub.ingest.commit("cam-1", batch)
    await hub.ingest.commit("cam-1", Batch("sample", "next", 0, ((1, encode(given)),)))
    assert len(await joined(store)) == 1


async def test_a_correction_counts_and_the_history_stays(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    assert await hub.take(NewLabel("a", "dog", at=100.0)) == LabelsTaken(accepted=1)
    assert await hub.take(NewLabel("a", "owl", at=200.0)) == LabelsTaken(corrected=1)
    assert await hub.take(NewLabel("a", "cat", at=150.0)) == LabelsTaken(older=1)
    assert [row[5] for row in await joined(store)] == [2.0]
    history = await hub.labels.desk.page(LabelQuery(prediction_id="a", history=True))
    assert [(one.value, one.replaced_at is None) for one in history] == [("dog", False), ("owl", True), ("cat", False)]
    assert [one.value for one in await hub.labels.desk.page(LabelQuery(prediction_id="a"))] == ["owl"]


async def test_importing_the_same_again_changes_nothing(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    rows = (NewLabel("a", "dog"), NewLabel("later", 1, weight=2.0))
    await hub.take(*rows)
    before = (await joined(store), await recorded(store))
    clock.advance(3600)
    assert await hub.take(*rows) == LabelsTaken(unchanged=2)
    assert (await joined(store), await recorded(store)) == before
    assert len(await hub.labels.desk.page(LabelQuery(history=True))) == 2


async def recorded(store: Store) -> list[dict[str, Any]]:
    query = select(events_table.c.details).where(events_table.c.kind == "labels.imported").order_by(events_table.c.id)
    async with store.read() as connection:
        return list((await connection.execute(query)).scalars())


async def test_who_imported_how_many_is_in_the_audit_trail(hub: Labelled, built: Built, store: Store) -> None:
    await hub.take(NewLabel("a", "dog"), NewLabel("b", "dog"))
    assert await recorded(store) == [{"accepted": 0, "waiting": 2, "corrected": 0, "older": 0}]


async def test_a_row_twice_in_one_import_is_a_correction_in_order(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    taken = await hub.take(NewLabel("a", "dog"), NewLabel("a", "dog"), NewLabel("a", "owl"), NewLabel("a", "cat"))
    assert taken == LabelsTaken(accepted=1, unchanged=1, corrected=2)
    assert [row[5] for row in await joined(store)] == [0.0]


async def test_a_dry_run_says_the_same_and_keeps_nothing(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    rows = (NewLabel("a", "dog"), NewLabel("b", "dog"), NewLabel("a", "horse"))
    dry = await hub.take(*rows, dry_run=True)
    assert (dry.accepted, dry.waiting, len(dry.refused)) == (1, 1, 1)
    assert (await joined(store), await states(store), await recorded(store)) == ([], [], [])
    assert await hub.take(*rows) == dry


async def test_an_id_of_several_devices_needs_the_device(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    for device in ("cam-1", "cam-2"):
        await hub.send(device, sample(built, "frame-1", clock(), {"scores": SURE_CAT}))
    taken = await hub.take(NewLabel("frame-1", "cat"), NewLabel("frame-1", "dog", device="cam-2"))
    assert taken.accepted == 1
    (refused,) = taken.refused
    assert (refused.row, refused.key) == (0, "ambiguous")
    assert "2 devices have made one of this id (cam-1, cam-2)" in refused.text
    assert [(row[1], row[5]) for row in await joined(store)] == [("cam-2", 1.0)]


async def test_a_label_that_becomes_ambiguous_counts_no_more(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    await hub.take(NewLabel("a", "cat"))
    assert len(await joined(store)) == 1
    await hub.send("cam-2", sample(built, "a", clock(), {"scores": SURE_CAT}))
    assert (await joined(store), await states(store)) == ([], [("a", "unusable", "ambiguous")])


async def test_a_label_that_names_its_device_stays_when_one_that_does_not_becomes_ambiguous(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.take(NewLabel("a", "dog", at=1.0), NewLabel("a", "cat", device="cam-2", at=2.0))
    await hub.send("cam-2", sample(built, "a", clock(), {"scores": SURE_CAT}))
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    assert [(row[1], row[5]) for row in await joined(store)] == [("cam-2", 0.0)]
    assert await states(store) == [("a", "unusable", "ambiguous"), ("a", "joined", "")]


async def test_of_two_labels_for_one_output_the_newer_counts_however_they_name_it(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    await hub.take(NewLabel("a", "owl", at=300.0), NewLabel("a", "dog", output="scores", device="cam-1", at=100.0))
    assert [row[5] for row in await joined(store)] == [2.0]
    await hub.take(NewLabel("a", "dog", output="scores", device="cam-1", at=400.0))  # said again, and later
    assert [row[5] for row in await joined(store)] == [1.0]


async def test_an_id_that_its_device_uses_twice_is_no_id(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "1", clock(), {"scores": SURE_CAT}))
    await hub.send("cam-1", sample(built, "1", clock() + 5, {"scores": SURE_CAT}))
    (refused,) = (await hub.take(NewLabel("1", "cat"))).refused
    assert refused.key == "repeated-id"
    assert "more than one prediction" in refused.text


async def test_two_versions_that_answered_the_same_prediction_are_both_labelled(
    hub: Labelled, built: Built, store: Store, blobs: Blobs, clock: SetClock
) -> None:
    second = await build_classifier(store, blobs, version=2)
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    await hub.send("cam-1", sample(second, "a", clock(), {"scores": (0.1, 0.2, 0.7)}))
    await hub.take(NewLabel("a", "owl"))
    assert {(row[2], row[6]) for row in await joined(store)} == {
        (built.manifest_sha256, 1.0),
        (second.manifest_sha256, 0.0),
    }


async def test_modules_that_share_an_id_need_the_module(
    hub: Labelled, built: Built, store: Store, blobs: Blobs, clock: SetClock
) -> None:
    other = await build_classifier(store, blobs, name="faces")
    for made in (built, other):
        await hub.send("cam-1", sample(made, "a", clock(), {"scores": SURE_CAT}))
    taken = await hub.take(NewLabel("a", "cat"), NewLabel("a", "dog", module="faces"))
    assert [(one.row, one.key) for one in taken.refused] == [(0, "ambiguous")]
    assert [row[2] for row in await joined(store)] == [other.manifest_sha256]


async def test_a_label_for_another_module_waits_and_says_nothing_of_this_one(
    hub: Labelled, built: Built, store: Store, blobs: Blobs, clock: SetClock
) -> None:
    await build_classifier(store, blobs, name="faces")
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    assert await hub.take(NewLabel("a", "cat", module="faces")) == LabelsTaken(waiting=1)
    assert await joined(store) == []


async def test_a_label_for_a_module_that_is_not_there_is_refused_and_does_not_wait_for_ever(
    hub: Labelled, built: Built, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    taken = await hub.take(NewLabel("a", "cat", module="digts"), NewLabel("a", "dog", module="digits"))
    assert [(one.row, one.key, one.text) for one in taken.refused] == [
        (0, "module-not-found", "no module digts on this hub")
    ]
    assert taken.accepted == 1


async def test_numbers_are_labelled_one_by_one_or_as_a_list_with_gaps(
    hub: Labelled, store: Store, blobs: Blobs, clock: SetClock
) -> None:
    built = await build_regressor(store, blobs, name="arm")
    for name in ("a", "b"):
        await hub.send("cam-1", sample(built, name, clock(), {"place": (10.0, 12.0)}))
    taken = await hub.take(
        NewLabel("a", [9.0, None]), NewLabel("a", 11.0, output="place[1]"), NewLabel("b", [8.0, 8.0], output="place")
    )
    assert taken == LabelsTaken(accepted=3)
    assert [(row[0], row[3], row[5], row[6]) for row in await joined(store)] == [
        ("a", "place[0]", 9.0, 1.0),
        ("a", "place[1]", 11.0, 1.0),
        ("b", "place[0]", 8.0, 2.0),
        ("b", "place[1]", 8.0, 4.0),
    ]
    # The list is corrected: only the element that was said on its own later stays.
    clock.advance(1)
    await hub.take(NewLabel("a", [10.0, 12.0]))
    assert [row[5] for row in await joined(store)][:2] == [10.0, 12.0]


async def test_outputs_of_several_kinds_are_labelled_by_name(
    hub: Labelled, store: Store, blobs: Blobs, clock: SetClock
) -> None:
    specs = [TensorSpec("scores", "FP32", (-1, 3), CLASSES), TensorSpec("age", "FP32", (-1, 1))]
    rng = np.random.default_rng(1)
    training = {"scores": scores_of(rng, 300), "age": rng.normal(30, 5, (300, 1)).astype(np.float32)}
    built = await build(store, blobs, training, specs, name="faces")
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT, "age": (31.5,)}))
    await hub.take(NewLabel("a", "cat"), NewLabel("a", 30, output="age"))
    assert [(row[3], row[6]) for row in await joined(store)] == [("age", 1.5), ("scores", 0.0)]


@pytest.mark.parametrize(
    ("row", "key", "words"),
    [
        (NewLabel("a", "horse"), "unknown-class", "expected one of cat, dog, owl, got 'horse'"),
        (NewLabel("a", 3), "unknown-class", "expected one of cat, dog, owl, got 3"),
        (NewLabel("a", -1), "unknown-class", "got -1"),
        (NewLabel("a", [1.0, 2.0]), "value", "expected one value, got a list of 2"),
        (NewLabel("a", "cat", output="box"), "unknown-output", "expected an output of scores"),
        (NewLabel("a", float("nan")), "value", "expected finite numbers"),
        (NewLabel("a", [float("inf")]), "value", "expected finite numbers"),
        (NewLabel("a", []), "value", "expected 1 to 4096 values"),
        (NewLabel("a", ""), "value", "expected 1 to 200 printable characters"),
        (NewLabel("a", "c\0t"), "value", "printable"),
        (NewLabel("a", "cat", weight=0.0), "weight", "above 0"),
        (NewLabel("a", "cat", weight=float("nan")), "weight", "above 0"),
        (NewLabel("a", "cat", at=float("nan")), "time", "seconds since the epoch"),
        (NewLabel("a", "cat", at=9e9), "time", "up to now"),
        (NewLabel("a\n", "cat"), "value", "printable"),
    ],
)
async def test_a_row_that_fits_nothing_is_refused_and_the_others_are_kept(
    hub: Labelled, built: Built, store: Store, clock: SetClock, row: NewLabel, key: str, words: str
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    taken = await hub.take(row, NewLabel("a", "cat"))
    assert taken.accepted == 1
    assert [(one.row, one.key) for one in taken.refused] == [(0, key)]
    assert words in taken.refused[0].text
    assert len(await joined(store)) == 1


async def test_a_wrong_label_that_came_first_is_unusable_when_its_sample_comes(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.take(NewLabel("a", "horse"), NewLabel("b", "cat"))
    for name in ("a", "b"):
        await hub.send("cam-1", sample(built, name, clock(), {"scores": SURE_CAT}))
    assert await states(store) == [("a", "unusable", "unknown-class"), ("b", "joined", "")]
    unusable = await hub.labels.desk.page(LabelQuery(state="unusable"))
    assert [(one.prediction_id, one.reason) for one in unusable] == [("a", "unknown-class")]


async def test_samples_that_were_asked_for_are_never_used(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}, "asked", 1.0))
    await hub.take(NewLabel("a", "cat"))
    assert await joined(store) == []
    # The same prediction was sampled by the policy, too: that sample counts, with its own probability.
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}, "base", 0.1))
    assert [row[7] for row in await joined(store)] == [pytest.approx(10.0)]


async def test_an_answer_that_was_withheld_or_redacted_is_not_scored(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    import msgspec

    whole = sample(built, "a", clock(), {"scores": SURE_CAT})
    await hub.send("cam-1", msgspec.structs.replace(whole, outputs=()))
    changed = msgspec.structs.replace(whole, prediction_id="b", redacted={"scores": "coarsen"})
    await hub.send("cam-1", changed)
    await hub.take(NewLabel("a", "cat"), NewLabel("b", "cat"))
    assert await joined(store) == []
    assert await states(store) == [("a", "unusable", "no-answer"), ("b", "unusable", "no-answer")]


async def test_an_answer_that_is_not_a_number_is_wrong(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": (float("nan"), 0.5, 0.5)}))
    await hub.take(NewLabel("a", "cat"))
    assert [(row[4], row[6]) for row in await joined(store)] == [(-1.0, 1.0)]


async def test_a_label_is_corrected_after_its_sample_is_gone(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}, probability=0.1))
    await hub.take(NewLabel("a", "dog"))
    async with store.write() as connection:
        await connection.execute(delete(samples))
    clock.advance(60)
    await hub.take(NewLabel("a", "cat", weight=2.0))
    (row,) = await joined(store)
    assert (row[4], row[5], row[6], row[7]) == (0.0, 0.0, 0.0, pytest.approx(20.0))
    async with store.read() as connection:
        (loss,) = (await connection.execute(select(outcomes.c.log_loss))).scalars()
    assert loss == pytest.approx(-np.log(np.float32(0.8)))


async def test_labels_and_outcomes_outlive_their_samples_and_go_at_their_own_age(
    hub: Labelled, built: Built, store: Store, blobs: Blobs, events: Events, clock: SetClock
) -> None:
    retention = Retention(HubConfig(samples_days=10, labels_days=20), store, blobs, events, clock)
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    await hub.take(NewLabel("a", "cat"))
    for days, left in ((11, (1, 1)), (10, (0, 0))):
        clock.advance(days * 86_400)
        await retention.sweep()
        assert (len(await joined(store)), len(await states(store))) == left


async def test_the_current_labels_of_predictions_are_found_by_id(hub: Labelled, built: Built, store: Store) -> None:
    await hub.take(NewLabel("a", "dog", at=1.0), NewLabel("a", "cat", at=2.0), NewLabel("b", 1, device="cam-2"))
    async with store.read() as connection:
        found = await current_labels(connection, ["a", "b", "c"])
    assert {name: [one.value for one in group] for name, group in found.items()} == {"a": ["cat"], "b": [1]}
    assert (found["b"][0].speaks_of("cam-2", "any"), found["b"][0].speaks_of("cam-1", "any")) == (True, False)


async def test_whose_scope_is_not_everything_labels_only_what_names_a_device_of_theirs(
    hub: Labelled, built: Built, store: Store, clock: SetClock
) -> None:
    await hub.send("cam-1", sample(built, "a", clock(), {"scores": SURE_CAT}))
    rows = (NewLabel("a", "cat"), NewLabel("a", "cat", device="cam-2"), NewLabel("a", "cat", device="cam-1"))
    taken = await hub.take(*rows, devices={"cam-1"})
    assert [one.key for one in taken.refused] == ["scope-needs-device", "device-not-found"]
    assert taken.accepted == 1


async def shuffled(hub: Labelled, steps: Sequence[Any]) -> None:
    for step in steps:
        if isinstance(step, NewLabel):
            await hub.take(step)
        else:
            await hub.send(*step)


@pytest.mark.parametrize("seed", range(5))
async def test_any_order_of_samples_labels_and_corrections_gives_the_same(
    hub: Labelled, built: Built, store: Store, blobs: Blobs, clock: SetClock, seed: int
) -> None:
    second = await build_classifier(store, blobs, version=2)
    rng = np.random.default_rng(seed)
    scores = scores_of(np.random.default_rng(3), 40)
    steps: list[Any] = []
    for i in range(10):
        devices = ("cam-1", "cam-2") if i % 3 == 0 else ("cam-1",)
        for n, device in enumerate(devices):
            made = second if i % 4 == 1 else built
            steps.append((device, sample(made, f"p{i}", clock() + i, {"scores": scores[i + 10 * n]})))
        named = "cam-2" if i % 6 == 0 else ""
        steps.append(NewLabel(f"p{i}", CLASSES[i % 3], device=named, at=100.0 + i))
        if i % 2:
            steps.append(NewLabel(f"p{i}", CLASSES[(i + 1) % 3], device=named, at=200.0 + i))
            steps.append(NewLabel(f"p{i}", CLASSES[i % 3], device=named, at=150.0 + i))
        if i == 7:
            steps.append(NewLabel("p7", "cat", device="cam-1", output="scores", at=300.0))
            steps.append(("cam-1", sample(built, "p7", clock() + i, {"scores": scores[i]})))  # sent again
        if i == 8:
            steps.append(("cam-1", sample(built, "p8", clock() + 99, {"scores": scores[i]})))  # another of that id
    await shuffled(hub, steps)
    expected = await joined(store)
    assert len(expected) > 6
    async with store.write() as connection:
        for table in (outcomes, labels, samples):
            await connection.execute(delete(table))
    await shuffled(hub, [steps[place] for place in rng.permutation(len(steps))])
    assert await joined(store) == expected
