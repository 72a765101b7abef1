"""The probe: a model is looked at in a process of its own, and what does not fit is refused with its reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from cloud_hub.errors import Unprocessable
from cloud_hub.probing.probe import probe
from cloud_hub.probing.request import ProbeRequest
from modules.tensors import TensorSpec, decode_golden
from modules.windows import decode_reference

pixels, labels = load_iris(return_X_y=True)
measures = pixels.astype(np.float32)


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("iris")
    model = LogisticRegression(max_iter=500).fit(measures, labels)
    onnx = to_onnx(model, measures[:1], options={id(model): {"zipmap": False}}, target_opset=17)
    (folder / "iris.onnx").write_bytes(onnx.SerializeToString())
    np.savez(folder / "training.npz", X=measures)
    return folder


def request(iris: Path, out: Path, **changes: Any) -> ProbeRequest:
    fields = {"model": str(iris / "iris.onnx"), "training": str(iris / "training.npz"), "golden": ""}
    return ProbeRequest(**(fields | changes), output_folder=str(out))


async def test_a_model_and_its_training_sample_become_specs_goldens_and_a_reference(iris: Path, tmp_path: Path) -> None:
    result = await probe(request(iris, tmp_path, labels={"X": ("a", "b", "c", "d")}))
    assert [spec.shape for spec in result.inputs] == [(-1, 4)]
    assert result.inputs[0].labels == ("a", "b", "c", "d")
    assert [spec.datatype for spec in result.outputs] == ["INT64", "FP32"]
    golden = decode_golden((tmp_path / "golden.msgpack").read_bytes())
    assert len(golden.cases) == result.golden_cases == 8
    assert golden.cases[0].inputs[0].data == measures[0].tobytes()
    reference = decode_reference((tmp_path / "reference.json").read_bytes())
    assert reference.rows == 150
    assert [feature.name for feature in reference.inputs] == ["X[a]", "X[b]", "X[c]", "X[d]"]
    assert all(sum(feature.counts) == 150 for feature in reference.features)


async def test_a_csv_names_the_features_by_its_header(iris: Path, tmp_path: Path) -> None:
    lines = ["length,width,petal_length,petal_width", *(",".join(map(str, row)) for row in measures.tolist())]
    (tmp_path / "training.csv").write_text("\n".join(lines))
    result = await probe(request(iris, tmp_path, training=str(tmp_path / "training.csv")))
    assert result.inputs[0].labels == ("length", "width", "petal_length", "petal_width")


async def test_a_script_is_described_by_its_publisher_and_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", x=measures[:3], y=labels[:3])
    result = await probe(
        ProbeRequest(
            "",
            "",
            str(tmp_path / "golden.npz"),
            str(tmp_path),
            inputs=(TensorSpec("x", "FP32", (-1, 4)),),
            outputs=(TensorSpec("y", "INT64", (-1,)),),
        )
    )
    assert (result.golden_cases, result.reference) == (3, False)


async def test_a_file_that_is_no_model_is_refused(iris: Path, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"not a model")
    with pytest.raises(Unprocessable, match=r"junk\.onnx is not a valid ONNX model"):
        await probe(request(iris, tmp_path, model=str(tmp_path / "junk.onnx")))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"Y": measures}, r"expected arrays named \['X'\]"),
        ({"X": measures[:, :3]}, r"expected shape \[-1, 4\], got \[150, 3\]"),
        ({"X": measures.astype(str)}, "expected numbers"),
        ({"X": measures[:0]}, "at least one"),
    ],
)
async def test_data_that_does_not_fit_the_model_is_refused_with_what_was_expected(
    iris: Path, tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "training.npz", **arrays)
    with pytest.raises(Unprocessable, match=words):
        await probe(request(iris, tmp_path, training=str(tmp_path / "training.npz")))


async def test_a_pickle_in_the_sample_is_never_opened(iris: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "training.npz", X=np.array([{"a": 1}], dtype=object))
    with pytest.raises(Unprocessable, match="allow_pickle"):
        await probe(request(iris, tmp_path, training=str(tmp_path / "training.npz")))
