"""What goes over the counter between hub and runner: the job, and what came of it. Pure values."""

from __future__ import annotations

import msgspec

from cloud_hub.datasets.wishes import Dataset
from cloud_hub.registry import ModelVersion
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.retraining.records import Run


class Job(msgspec.Struct, frozen=True):
    """What a runner needs: the run, its plan, the data set, and the champion's files."""

    run: Run
    plan: RetrainPlan
    dataset: Dataset
    champion: ModelVersion


class TrainedCandidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a runner made: digests of uploads by path, and where they come from. `seconds` is how long it took."""

    runner: str
    files: dict[str, str]
    reference: str = ""
    seconds: float = 0.0
    log: str = ""
    git_commit: str = ""
    mlflow_run: str = ""
    mlflow_uri: str = ""
