"""What is taken out of a row before it leaves, and what is cut off into a blob."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from agent.endpoint.codec import from_tensor
from agent.sampling.features import Names, PolicyError
from agent.sampling.making import REMEMBERED_S, Maker, NotSent
from agent.sampling.redaction import Redactor
from agent.sampling.sampler import Choice
from modules.manifest import Lineage, Manifest, Runtime, SamplingPolicy
from modules.messages import Sample, decode_sample
from modules.pieces import MAX_BLOB_BYTES, PIECE_BYTES, decode_piece
from modules.sampling import Redaction
from modules.tensors import TensorSpec
from modules.windows import Numeric, ReferenceProfile

MANIFEST = Manifest(
    "m", 1, "pi", Lineage("m", 1),
    (
        TensorSpec("x", "FP32", (-1, 2), ("age", "pay")),
        TensorSpec("name", "BYTES", (-1, 1)),
        TensorSpec("picture", "UINT8", (-1, 4, 6, 3)),
        TensorSpec("frame", "FP32", (-1, 1, -1, -1)),
    ),
    (TensorSpec("y", "INT64", (-1, 1)),),
    (), Runtime(model=""),
)  # fmt: skip
REFERENCE = ReferenceProfile(10, (Numeric("x[age]", "x", (0.0, 30.0, 60.0), (5, 5, 0, 0, 0), 1.0, 1.0),))
PICTURE = np.arange(72, dtype=np.uint8).reshape(1, 4, 6, 3)
FRAME = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
ROW: dict[str, np.ndarray[Any, Any]] = {
    "x": np.array([[41.5, 1234.0]], np.float32),
    "name": np.array([[b"Ada"]], object),
    "picture": PICTURE,
    "frame": FRAME,
}
ANSWER = {"y": np.array([[7]])}


def redactor(key: bytes = b"secret", salt: str = "", **redact: Redaction) -> Redactor:
    named = {name.replace("__", "["): how for name, how in redact.items()}
    named = {f"{name}]" if "[" in name else name: how for name, how in named.items()}
    return Redactor(SamplingPolicy(salt=salt, redact=named), Names(MANIFEST, REFERENCE), key)


def test_a_dropped_tensor_is_gone_and_a_dropped_feature_is_missing() -> None:
    row = redactor(name=Redaction("drop"), x__pay=Redaction("drop"), y=Redaction("drop")).apply(ROW, ANSWER)
    assert row.dropped == {"name", "y"}
    assert set(row.inputs) == {"x", "picture", "frame"}
    assert row.outputs == {}
    assert row.inputs["x"][0, 0] == 41.5
    assert np.isnan(row.inputs["x"][0, 1])
    assert row.done == {"name": "drop", "x[pay]": "drop", "y": "drop"}
    assert ROW["x"][0, 1] == 1234.0  # what the model saw is not written to


def test_hashes_are_the_same_for_the_same_value_on_one_device_and_under_one_salt() -> None:
    def hashed(key: bytes, salt: str) -> tuple[bytes, float]:
        row = redactor(key, salt, name=Redaction("hash"), x__pay=Redaction("hash")).apply(ROW, ANSWER)
        return row.inputs["name"][0, 0], float(row.inputs["x"][0, 1])

    text, number = hashed(b"a", "s")
    assert (text, number) == hashed(b"a", "s")
    assert text != b"Ada"
    assert number not in (1234.0, hashed(b"b", "s")[1], hashed(b"a", "t")[1])
    assert text not in (hashed(b"b", "s")[0], hashed(b"a", "t")[0])
    assert number == int(number) < 2**24  # as FP32 holds it exactly
    whole = redactor(y=Redaction("hash")).apply(ROW, ANSWER).outputs["y"]
    assert whole.dtype == np.int64
    assert whole[0, 0] != 7


def test_values_are_coarsened_to_a_step_or_to_their_bin() -> None:
    row = redactor(x=Redaction("coarsen", step=100.0)).apply(ROW, ANSWER)
    assert row.inputs["x"].tolist() == [[0.0, 1200.0]]
    row = redactor(x__age=Redaction("coarsen")).apply(ROW, ANSWER)
    assert row.inputs["x"].tolist() == [[30.0, 1234.0]]


@pytest.mark.parametrize(("value", "low"), [(-5.0, -1e-45), (0.0, 0.0), (60.0, 30.0), (61.0, 60.000004)])
def test_what_is_out_of_range_stays_out_of_range_and_tells_no_more(value: float, low: float) -> None:
    row = {**ROW, "x": np.array([[value, 1.0]], np.float32)}
    found = float(redactor(x__age=Redaction("coarsen")).apply(row, ANSWER).inputs["x"][0, 0])
    assert found == pytest.approx(low, rel=1e-6, abs=1e-40)


def test_a_blurred_region_has_one_colour_and_the_rest_is_as_it_was() -> None:
    blurred = redactor(picture=Redaction("blur", region=(1, 2, 2, 3))).apply(ROW, ANSWER).inputs["picture"]
    region = blurred[0, 1:3, 2:5]
    assert len(np.unique(region.reshape(-1, 3), axis=0)) == 1
    assert region[0, 0].tolist() == PICTURE[0, 1:3, 2:5].reshape(-1, 3).mean(axis=0).astype(np.uint8).tolist()
    left = blurred.copy()
    left[0, 1:3, 2:5] = PICTURE[0, 1:3, 2:5]
    assert (left == PICTURE).all()


def test_a_picture_with_colours_first_is_blurred_in_squares() -> None:
    frame = redactor(frame=Redaction("blur", step=2)).apply(ROW, ANSWER).inputs["frame"]
    assert frame[0, 0].tolist() == [[2.5, 2.5, 4.5, 4.5]] * 2 + [[10.5, 10.5, 12.5, 12.5]] * 2


@pytest.mark.parametrize(
    "redact",
    [
        {"z": Redaction("drop")},
        {"x__7": Redaction("drop")},
        {"name": Redaction("coarsen", step=1.0)},
        {"name": Redaction("blur")},
        {"x__pay": Redaction("coarsen")},
        {"y": Redaction("coarsen")},
        {"x__0": Redaction("blur")},
    ],
)
def test_what_cannot_be_taken_out_is_refused(redact: dict[str, Redaction]) -> None:
    with pytest.raises(PolicyError, match="sampling"):
        redactor(b"", "", **redact)


def made(policy: SamplingPolicy, maker: Maker | None = None) -> tuple[Sample, list[bytes]]:
    maker = maker or Maker(MANIFEST, "d" * 64, lambda: 1.0)
    maker.set(policy, Redactor(policy, Names(MANIFEST, REFERENCE), b""))
    found = maker.make("p", Choice(0, "base", 0.5), ROW, ANSWER)
    return decode_sample(found.sample), found.pieces


def test_a_sample_says_what_it_does_not_hold() -> None:
    policy = SamplingPolicy(redact={"name": Redaction("drop"), "x[pay]": Redaction("drop")})
    sample, pieces = made(policy)
    assert pieces == []
    assert [t.name for t in sample.inputs] == ["x", "picture", "frame"]
    (gone,) = sample.withheld
    assert (gone.name, gone.side, gone.datatype, gone.shape, gone.why) == ("name", "input", "BYTES", (1, 1), "drop")
    assert sample.redacted == {"name": "drop", "x[pay]": "drop"}


def test_a_large_tensor_travels_apart_once_after_it_was_redacted() -> None:
    size = 3 * PIECE_BYTES - 5
    image = np.arange(size // 4, dtype=np.float32).reshape(1, 1, -1, 1)
    row = {**ROW, "frame": image}
    now = [0.0]
    maker = Maker(MANIFEST, "d" * 64, lambda: now[0])
    policy = SamplingPolicy(blob_bytes=1024, redact={"frame[0]": Redaction("drop")})
    maker.set(policy, None)
    with pytest.raises(NotSent, match="redaction"):
        maker.make("p", Choice(0, "base", 0.5), row, ANSWER)
    policy = SamplingPolicy(blob_bytes=1024, redact={"frame": Redaction("coarsen", step=10.0)})
    maker.set(policy, Redactor(policy, Names(MANIFEST, REFERENCE), b""))
    first = maker.make("p", Choice(0, "base", 0.5), row, ANSWER)
    sample, pieces = decode_sample(first.sample), [decode_piece(piece) for piece in first.pieces]
    (apart,) = sample.withheld
    whole = b"".join(piece.data for piece in pieces)
    assert (apart.name, apart.why, apart.size) == ("frame", "blob", len(whole))
    assert apart.sha256 == hashlib.sha256(whole).hexdigest() == pieces[0].sha256
    assert np.frombuffer(whole, "<f4").tolist() == (np.floor(image.ravel() / 10) * 10).tolist()
    assert maker.make("q", Choice(0, "base", 0.5), row, ANSWER).pieces == []
    now[0] = REMEMBERED_S
    assert maker.make("r", Choice(0, "base", 0.5), row, ANSWER).pieces == first.pieces


def test_what_is_larger_than_a_blob_may_be_is_not_sent() -> None:
    image = np.zeros((1, 1, MAX_BLOB_BYTES // 4 + 1, 1), np.float32)
    maker, policy = Maker(MANIFEST, "d" * 64, lambda: 1.0), SamplingPolicy(blob_bytes=1024)
    maker.set(policy, Redactor(policy, Names(MANIFEST, REFERENCE), b""))
    with pytest.raises(NotSent, match="size"):
        maker.make("p", Choice(0, "base", 0.5), {**ROW, "frame": image}, ANSWER)
    maker.set(SamplingPolicy(), Redactor(SamplingPolicy(), Names(MANIFEST, REFERENCE), b""))
    with pytest.raises(NotSent, match="size"):
        maker.make("p", Choice(0, "base", 0.5), {**ROW, "frame": image}, ANSWER)


def test_tensors_that_are_kept_come_as_the_model_saw_them() -> None:
    sample, _ = made(SamplingPolicy(blob_bytes=4096))
    assert from_tensor(sample.inputs[2]).tolist() == PICTURE.tolist()
    assert sample.withheld == ()
