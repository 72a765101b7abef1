"""Steps of the manifest against others' implementations: ONNX Runtime, OpenCV, and definitions written down plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from agent.backends.steps.pictures import resize
from agent.backends.steps.prepared import prepared
from modules.chain import largest_bytes
from modules.steps import (
    ArgMax,
    Cast,
    Crop,
    Decode,
    Letterbox,
    NonMaxSuppression,
    Normalise,
    Reshape,
    Resize,
    ScaleBoxes,
    Sigmoid,
    Slice,
    Softmax,
    Step,
    StepError,
    Threshold,
    Tokenise,
    TopK,
    Transpose,
    flow,
)
from modules.tensors import TensorSpec

LIMIT = largest_bytes(0)
SOME = settings(max_examples=25, deadline=None)
Arrays = dict[str, Any]


def done(step: Step, have: list[TensorSpec], tensors: Arrays, slot: Path = Path()) -> Arrays:
    """The tensors after the step; every one that it gives is what its check has promised."""
    specs = {spec.name: spec for spec in have}
    before = {name: array.copy() for name, array in tensors.items()}
    given_arrays = dict(tensors)
    promised = flow((step,), specs, LIMIT)
    after = dict(tensors)
    with np.errstate(all="ignore"):  # as the backend around it has it
        prepared(step, specs, slot, LIMIT)(after)
    for name, array in given_arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg="the step wrote to its input")
    for spec in step.gives(specs):
        array = after[spec.name]
        kinds = {"BYTES": "O", "FP32": "f4", "INT64": "i8", "UINT8": "u1", "BOOL": "b1", "FP64": "f8"}
        if spec.datatype in kinds:
            assert array.dtype == np.dtype(kinds[spec.datatype]), spec
        assert len(array.shape) == len(spec.shape), spec
        assert all(want in (-1, have) for want, have in zip(promised[spec.name].shape, array.shape, strict=True))
    return after


def spec(name: str, datatype: str, *shape: int, labels: tuple[str, ...] = ()) -> TensorSpec:
    return TensorSpec(name, datatype, shape, labels)


def onnx_run(node: Any, inputs: Arrays, output: str = "y", kind: int = TensorProto.FLOAT, **constants: Any) -> Any:
    kinds = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, kinds[str(a.dtype)], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run([output], inputs)[0]


@SOME
@given(
    st.integers(1, 3), st.integers(1, 17), st.integers(1, 17), st.integers(1, 23), st.integers(1, 23),
    st.sampled_from(["nearest", "bilinear"]), st.sampled_from([1, 3]),
)  # fmt: skip
def test_resize_is_onnx_resize_with_half_pixels(
    rows: int, high: int, wide: int, height: int, width: int, method: Any, channels: int
) -> None:
    x = np.random.default_rng(high * 31 + wide).random((rows, channels, high, wide)).astype(np.float32)
    mode = {"nearest": "nearest", "bilinear": "linear"}[method]
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode=mode,
        coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_floor",
    )  # fmt: skip
    expected = onnx_run(node, {"x": x}, sizes=np.array([rows, channels, height, width]))
    step = Resize("x", height, width, to="y", method=method, layout="NCHW")
    y = done(step, [spec("x", "FP32", -1, channels, high, wide)], {"x": x})["y"]
    np.testing.assert_allclose(y, expected, atol=2e-6)


def test_resize_of_bytes_is_what_opencv_makes_of_them_give_or_take_a_rounding() -> None:
    x = np.random.default_rng(0).integers(0, 256, (1, 61, 47, 3), np.uint8)
    ours = resize(x, 90, 33, "bilinear")[0]
    theirs = cv2.resize(x[0], (33, 90), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@SOME
@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_boxes_are_those_of_onnx_non_max_suppression(
    rows: int, count: int, classes: int, centre: bool, last: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    boxes = random.random((rows, count, 4)).astype(np.float32)
    scores = random.permutation(rows * classes * count).reshape(rows, classes, count).astype(np.float32)
    scores /= scores.size
    node = helper.make_node(
        "NonMaxSuppression", ["boxes", "scores", "most", "iou", "score"], ["y"], center_point_box=int(centre)
    )
    constants: Arrays = {"most": np.array([count]), "iou": np.array([0.3], "f4"), "score": np.array([0.2], "f4")}
    chosen = onnx_run(node, {"boxes": boxes, "scores": scores}, kind=TensorProto.INT64, **constants)
    step = NonMaxSuppression(
        "boxes", "scores", "b", "s", "c", "n", format="centre" if centre else "corners", last=last, iou=0.3, score=0.2,
        most=15,
    )  # fmt: skip
    given_scores = np.ascontiguousarray(scores.transpose(0, 2, 1)) if last else scores
    shape = (-1, count, classes) if last else (-1, classes, count)
    found = done(
        step, [spec("boxes", "FP32", -1, count, 4), spec("scores", "FP32", *shape)],
        {"boxes": boxes, "scores": given_scores},
    )  # fmt: skip
    for row in range(rows):
        theirs = [(float(scores[row, c, b]), int(c)) for r, c, b in chosen if r == row]
        theirs = sorted(theirs, reverse=True)[:15]
        kept = int(found["n"][row])
        ours = list(zip(found["s"][row, :kept].tolist(), found["c"][row, :kept].tolist(), strict=True))
        assert ours == theirs
        assert not found["s"][row, kept:].any()
        assert not found["b"][row, kept:].any()


def test_a_free_number_of_boxes_is_that_of_the_picture_with_the_most() -> None:
    boxes = np.array([[[0, 0, 1, 1], [2, 2, 3, 3]], [[0, 0, 1, 1], [2, 2, 3, 3]]], np.float32)
    scores = np.array([[[0.9, 0.8]], [[0.7, 0.1]]], np.float32)
    step = NonMaxSuppression("boxes", "scores", "b", "s", "c", "n", fixed=False)
    have = [spec("boxes", "FP32", -1, 2, 4), spec("scores", "FP32", -1, 1, 2)]
    found = done(step, have, {"boxes": boxes, "scores": scores})
    assert found["n"].tolist() == [2, 1]
    assert found["b"].shape == (2, 2, 4)
    none = done(step, have, {"boxes": boxes, "scores": np.full_like(scores, np.nan)})
    assert none["b"].shape == (2, 0, 4)


def test_over_all_classes_boxes_take_away_those_of_another_class() -> None:
    boxes = np.array([[[0, 0, 1, 1], [0, 0, 1, 0.9]]], np.float32)
    scores = np.array([[[0.9, 0.0], [0.0, 0.8]]], np.float32)
    have = [spec("boxes", "FP32", -1, 2, 4), spec("scores", "FP32", -1, 2, 2)]
    for any_class, kept in ((False, 2), (True, 1)):
        step = NonMaxSuppression("boxes", "scores", "b", "s", "c", "n", any_class=any_class)
        assert done(step, have, {"boxes": boxes, "scores": scores})["n"].tolist() == [kept]


@SOME
@given(st.integers(1, 4), st.integers(1, 9), st.floats(-1e4, 1e4, width=32))
def test_softmax_and_sigmoid_are_those_of_onnx(rows: int, width: int, offset: float) -> None:
    x = (np.random.default_rng(width).normal(size=(rows, width)) * 30 + offset).astype(np.float32)
    have = [spec("x", "FP32", -1, width)]
    expected = onnx_run(helper.make_node("Softmax", ["x"], ["y"]), {"x": x})
    np.testing.assert_allclose(done(Softmax("x", "y"), have, {"x": x})["y"], expected, atol=2e-6)
    expected = onnx_run(helper.make_node("Sigmoid", ["x"], ["y"]), {"x": x})
    np.testing.assert_allclose(done(Sigmoid("x", "y"), have, {"x": x})["y"], expected, atol=2e-6)


@SOME
@given(st.integers(1, 3), st.integers(2, 8), st.integers(1, 8), st.integers(0, 99))
def test_the_best_are_sorted_with_the_first_of_equals_before(rows: int, width: int, k: int, seed: int) -> None:
    k = min(k, width)
    x = np.random.default_rng(seed).integers(0, 4, (rows, width)).astype(np.uint8)
    labels = tuple(f"label {n}" for n in range(width))
    found = done(TopK("x", k, "v", "i", "n"), [spec("x", "UINT8", -1, width, labels=labels)], {"x": x})
    for row in range(rows):
        expected = sorted(range(width), key=lambda n: (-int(x[row, n]), n))[:k]
        assert found["i"][row].tolist() == expected
        assert found["v"][row].tolist() == x[row, expected].tolist()
        assert found["n"][row].tolist() == [labels[n].encode() for n in expected]


@SOME
@given(st.lists(st.floats(width=64), min_size=1, max_size=20), st.sampled_from(["UINT8", "INT8", "INT32", "INT64"]))
def test_numbers_are_rounded_to_even_and_cut_off_when_they_become_integers(values: list[float], kind: str) -> None:
    bounds = np.iinfo({"UINT8": "u1", "INT8": "i1", "INT32": "i4", "INT64": "i8"}[kind])

    def one(value: float) -> int:
        if value != value:
            return 0
        if abs(value) == float("inf"):
            return int(bounds.max if value > 0 else bounds.min)
        return max(int(bounds.min), min(int(bounds.max), round(value)))

    x = np.array(values)
    y = done(Cast("x", kind, to="y"), [spec("x", "FP64", -1)], {"x": x})["y"]
    assert y.tolist() == [one(value) for value in values]


def test_integers_that_are_too_large_for_a_narrower_kind_are_cut_off() -> None:
    x = np.array([-5, 3, 300, 2**40])
    assert done(Cast("x", "UINT8"), [spec("x", "INT64", -1)], {"x": x})["x"].tolist() == [0, 3, 255, 255]
    large = np.array([1, 2**63 + 5], np.uint64)
    assert done(Cast("x", "INT64"), [spec("x", "UINT64", -1)], {"x": large})["x"].tolist() == [1, 2**63 - 1]


def test_layouts_change_without_a_loss() -> None:
    x = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    have = [spec("x", "FP32", -1, 3, 4, 5)]
    nchw = done(Transpose("x", (0, 3, 1, 2), "y"), have, {"x": x})["y"]
    np.testing.assert_array_equal(nchw, np.moveaxis(x, 3, 1))
    assert done(Reshape("x", (0, -1), "y"), have, {"x": x})["y"].shape == (2, 60)
    np.testing.assert_array_equal(done(Slice("x", 3, 1, 4, "y"), have, {"x": x})["y"], x[..., 1:4])


def test_normalising_takes_a_number_per_channel_of_either_layout() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    mean, scale = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    expected = ((x - np.array(mean)) / np.array(scale)).astype(np.float32)
    last = done(Normalise("x", "y", mean, scale), [spec("x", "UINT8", -1, 4, 5, 3)], {"x": x})["y"]
    np.testing.assert_allclose(last, expected, rtol=1e-6)
    first = np.ascontiguousarray(np.moveaxis(x, 3, 1))
    have = [spec("x", "UINT8", -1, 3, 4, 5)]
    y = done(Normalise("x", "y", mean, scale, axis=1), have, {"x": first})["y"]
    np.testing.assert_allclose(y, np.moveaxis(expected, 3, 1), rtol=1e-6)


def test_the_largest_and_those_above_a_threshold() -> None:
    x = np.array([[1.0, 3.0, 3.0], [np.nan, 0.0, 1.0]], np.float32)
    have = [spec("x", "FP32", -1, 3)]
    assert done(ArgMax("x", "y"), have, {"x": x})["y"].tolist() == [1, 0]
    assert done(Threshold("x", 1.0, "y"), have, {"x": x})["y"].tolist() == [[True, True, True], [False, False, True]]
    kept = done(Threshold("x", 2.0, "y", keep=True), have, {"x": x})["y"]
    assert kept.tolist() == [[0, 3, 3], [0, 0, 0]]


@pytest.fixture
def picture() -> Any:
    smooth = np.linspace(0, 255, 40 * 30 * 3).reshape(40, 30, 3)
    return smooth.astype(np.uint8)


def encoded(picture: Any, suffix: str = ".png") -> bytes:
    """`picture` is RGB."""
    return bytes(cv2.imencode(suffix, picture[:, :, ::-1])[1])


BYTES = [spec("x", "BYTES", -1)]


def test_png_files_come_back_as_they_were(picture: Any) -> None:
    x = np.array([encoded(picture), encoded(picture[::-1])], object)
    y = done(Decode("x", "y"), BYTES, {"x": x})["y"]
    np.testing.assert_array_equal(y, np.stack([picture, picture[::-1]]))
    bgr = done(Decode("x", "y", colour="bgr"), BYTES, {"x": x})["y"]
    np.testing.assert_array_equal(bgr[0], picture[:, :, ::-1])
    assert done(Decode("x", "y", colour="grey"), BYTES, {"x": x})["y"].shape == (2, 40, 30, 1)


def test_pictures_of_different_sizes_need_a_size(picture: Any) -> None:
    x = np.array([encoded(picture, ".jpg"), encoded(picture[:20], ".jpg")], object)
    with pytest.raises(ValueError, match="one size in a batch"):
        done(Decode("x", "y"), BYTES, {"x": x})
    for fit in ("stretch", "letterbox", "crop"):
        found = done(Decode("x", "y", height=16, width=24, fit=fit, geometry="g"), BYTES, {"x": x})
        assert found["y"].shape == (2, 16, 24, 3)
        assert found["g"].shape == (2, 6)


@pytest.mark.parametrize("spoilt", ["cut", "empty", "text", "gif", "zeros", "huge png", "endless jpeg", "flat jpeg"])
def test_a_picture_that_is_none_is_refused(picture: Any, spoilt: str) -> None:
    png = encoded(picture)
    data = {
        "cut": png[:20],
        "empty": b"",
        "text": b"hello" * 100,
        "gif": b"GIF89a" + bytes(100),
        "zeros": png[:33] + bytes(len(png)),
        "huge png": png[:16] + b"\0\0\xff\xff\0\0\xff\xff" + png[24:],
        "endless jpeg": b"\xff\xd8" + b"\xff" * 1000,
        "flat jpeg": b"\xff\xd8\xff\xe0\x00\x00" + bytes(50),
    }[spoilt]
    with pytest.raises(ValueError, match="decode: expected"):
        done(Decode("x", "y", max_pixels=10_000), BYTES, {"x": np.array([data], object)})


@SOME
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30), st.integers(1, 30))
def test_boxes_come_back_to_the_pixels_that_they_were_drawn_around(
    high: int, wide: int, height: int, width: int
) -> None:
    x = np.zeros((1, high, wide, 1), np.uint8)
    have = [spec("x", "UINT8", -1, -1, -1, 1)]
    found = done(Letterbox("x", height, width, to="y", geometry="g", value=7), have, {"x": x})
    scale_x, scale_y, left, top, *_ = found["g"][0]
    box = np.array([0.25 * wide, 0.5 * high, 0.75 * wide, high], np.float32)
    drawn = np.array([[box * [scale_x, scale_y, scale_x, scale_y] + [left, top, left, top]]], np.float32)
    both = [spec("b", "FP32", -1, -1, 4), spec("g", "FP32", -1, 6)]
    back = done(ScaleBoxes("b", "g", "o"), both, {"b": drawn, "g": found["g"]})["o"]
    np.testing.assert_allclose(back[0, 0], box, rtol=1e-3, atol=1e-3)
    beyond = done(ScaleBoxes("b", "g", "o"), both, {"b": drawn * 1000 - 5000, "g": found["g"]})["o"]
    assert (beyond >= 0).all()
    assert (beyond[0, 0] <= [wide, high, wide, high]).all()


def test_a_letterbox_keeps_the_proportions_and_fills_the_rest() -> None:
    x = np.full((1, 20, 40, 3), 200, np.uint8)
    y = done(Letterbox("x", 40, 40, to="y"), [spec("x", "UINT8", -1, 20, 40, 3)], {"x": x})["y"]
    assert (y[0, 10:30] == 200).all()
    assert (y[0, :10] == 114).all()
    assert (y[0, 30:] == 114).all()


def test_the_middle_is_cut_out_and_a_smaller_picture_refused() -> None:
    x = np.arange(6 * 8).reshape(1, 6, 8, 1)
    have = [spec("x", "INT64", -1, -1, -1, 1)]
    assert done(Crop("x", 2, 4, "y"), have, {"x": x})["y"].ravel().tolist() == [18, 19, 20, 21, 26, 27, 28, 29]
    with pytest.raises(ValueError, match="expected at least 9 x 4"):
        done(Crop("x", 9, 4, "y"), have, {"x": x})


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "un",
    "##aff",
    "##able",
    "want",
    "##ed",
    "runn",
    "##ing",
    ",",
    "hello",
    "?",
]


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path


def ids(slot: Path, *texts: bytes, **options: Any) -> Arrays:
    step = Tokenise("x", "vocab.txt", to="ids", **{"length": 9, **options})
    return done(step, BYTES, {"x": np.array(texts, object)}, slot)


def test_words_are_cut_into_the_longest_pieces_known(slot: Path) -> None:
    bert = {"method": "wordpiece", "lower": True, "begin": "[CLS]", "end": "[SEP]", "mask": "mask", "types": "types"}
    found = ids(slot, "UNwant\u00e9d, running?".encode(), b"unaffable hello\x00", **bert)
    # As bert-base-uncased's own tokeniser test has it: un ##want is not known here, so the word is unknown.
    assert found["ids"].tolist() == [[2, 1, 11, 9, 10, 13, 3, 0, 0], [2, 4, 5, 6, 12, 3, 0, 0, 0]]
    assert found["mask"].sum(axis=1).tolist() == [7, 6]
    assert not found["types"].any()
    wanted = ids(slot, "wänted".encode(), **bert)
    assert wanted["ids"][0, :4].tolist() == [2, 7, 8, 3]


def test_longer_texts_are_cut_and_keep_their_end(slot: Path) -> None:
    found = ids(slot, b"hello " * 50, length=5, begin="[CLS]", end="[SEP]")
    assert found["ids"].tolist() == [[2, 12, 12, 12, 3]]
    assert ids(slot, b"", b"Hello un", length=3)["ids"].tolist() == [[0, 0, 0], [1, 4, 0]]
    assert ids(slot, b"\xff\xfe hello", length=3)["ids"].tolist() == [[1, 12, 0]]


def test_a_text_without_end_is_refused_and_so_is_a_vocabulary_without_the_words(slot: Path) -> None:
    with pytest.raises(ValueError, match="at most 1048576 bytes"):
        ids(slot, bytes(2_000_000))
    with pytest.raises(ValueError, match="expected a line '<unk>'"):
        ids(slot, b"hello", unknown="<unk>")


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Resize("i", 16_000, 16_000), "bytes in one row"),
        (Resize("i", 100_000, 10), "sides of 1 to"),
        (Resize("nothing", 1, 1), "expected one of i, t, f"),
        (Resize("f", 1, 1), "4 dimensions"),
        (Transpose("i", (0, 1, 1, 2)), "each axis"),
        (Reshape("f", (7, 3)), "to fill"),
        (Reshape("f", (-1, -1)), "one -1"),
        (Cast("f", "BYTES"), "datatype of numbers"),
        (Softmax("i"), "expected i as FP16"),
        (Softmax("f", axis=2), "expected an axis"),
        (TopK("f", 11, "v"), "k of 1 to 10"),
        (TopK("f", 1, names="n"), "10 labels"),
        (TopK("f", 1), "a tensor to write"),
        (Normalise("i", mean=(1.0, 2.0)), "1 or 3 numbers"),
        (Normalise("i", scale=(0.0,)), "no scale of 0"),
        (Slice("f", 1, 5, 11), "start < stop"),
        (Decode("f"), "expected f as BYTES"),
        (Decode("t", height=5), "height and width, or neither"),
        (Tokenise("t", "v.txt", 10**9), "expected a length"),
        (NonMaxSuppression("b", "i", "x", "y", "z"), "expected one of"),
        (Threshold("f", float("nan")), "finite"),
    ],
)
def test_a_step_that_does_not_fit_is_refused_before_anything_runs(step: Step, text: str) -> None:
    have = [spec("i", "UINT8", -1, 8, 8, 3), spec("t", "BYTES", -1), spec("f", "FP32", 2, 10)]
    with pytest.raises(StepError, match=text):
        flow((step,), {one.name: one for one in have}, LIMIT)
