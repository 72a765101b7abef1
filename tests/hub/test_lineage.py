"""Where a model comes from, in the manifest that devices check."""

import msgspec
import pytest

from cloud_hub.building.manifests import lineage
from cloud_hub.registry import ModelVersion

MODEL = ModelVersion("digits", 4, "", "alice", "abc123", "", ("dataset:june:2@" + "0" * 64,), {}, 0.0, ())


@pytest.mark.parametrize(
    ("said", "run"),
    [
        ({}, ""),
        ({"training_run": "run-7", "mlflow_run": "4f1c"}, "run-7"),
        ({"mlflow_run": "4f1c"}, "mlflow:4f1c"),
        ({"mlflow_run": "4f1c", "mlflow_uri": "https://mlflow.example"}, "mlflow:https://mlflow.example#4f1c"),
    ],
)
def test_an_mlflow_run_is_the_training_run_where_no_other_is_named(said: dict[str, str], run: str) -> None:
    found = lineage(msgspec.structs.replace(MODEL, **said))
    assert (found.training_run, found.git_commit, found.datasets) == (run, "abc123", MODEL.datasets)


def test_agents_of_before_read_the_lineage() -> None:
    old = {"model", "model_version", "author", "training_run", "git_commit", "datasets"}
    assert set(msgspec.to_builtins(lineage(MODEL))) == old
