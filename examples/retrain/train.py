"""A training command for `mooring retrain`: a classifier from the rows of a data set, to ONNX.

It reads what MOORING_DATASET names and writes to MOORING_OUTPUT. Needs pyarrow, scikit-learn and skl2onnx. To try it by
hand: `mooring dataset download`, set the two variables, start this file.
"""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

DATASET, OUTPUT = Path(os.environ["MOORING_DATASET"]), Path(os.environ["MOORING_OUTPUT"])


def columns(table: pa.Table, tensor: bytes) -> list[str]:
    """Those of one input: one per named feature, or one of lists."""
    return [field.name for field in table.schema if (field.metadata or {}).get(b"mooring.tensor") == tensor]


def values(table: pa.Table, names: list[str]) -> np.ndarray:
    """Rows by features."""
    if pa.types.is_list(table.schema.field(names[0]).type):
        return np.array(table[names[0]].to_pylist(), np.float32)
    return np.stack([np.asarray(table[name], np.float32) for name in names], axis=1)


def main() -> None:
    table = pq.read_table(DATASET / "train.parquet")
    tensor = next(field.metadata[b"mooring.tensor"] for field in table.schema if field.name.startswith("input."))
    names = columns(table, tensor)
    table = table.filter(pc.field("label").is_valid() & pc.field(names[0]).is_valid())
    inputs, labels = values(table, names), np.asarray(table["label"])
    weights = np.asarray(table["weight"]) * np.asarray(table["label_weight"])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(inputs, labels, logisticregression__sample_weight=weights)
    shape = [(tensor.decode(), FloatTensorType([None, inputs.shape[1]]))]
    onnx = to_onnx(model, initial_types=shape, options={id(model): {"zipmap": False}}, target_opset=17)
    (OUTPUT / "model.onnx").write_bytes(onnx.SerializeToString())
    (OUTPUT / "mooring.json").write_text(json.dumps({"mlflow_run": os.environ.get("MLFLOW_RUN_ID", "")}))
    print(f"trained on {len(labels)} rows, right on {model.score(inputs, labels):.1%} of them")


if __name__ == "__main__":
    main()
