"""A training command in a container: the run's folders, no network, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud_hub.retraining.container import in_container
from cloud_hub.retraining.executing import Folders, Log, TrainingFailed, execute
from cloud_hub.retraining.plan import Training
from support.contained import WANTED
from support.dockerd import Dockerd

pytestmark = pytest.mark.timeout(180)  # the first one starts an engine, and makes an image
TRAINS = """
import os, pathlib, socket
data, output = pathlib.Path(os.environ["MOORING_DATASET"]), pathlib.Path(os.environ["MOORING_OUTPUT"])
print("interfaces", sorted(name for _, name in socket.if_nameindex()), flush=True)
try:
    (data / "spoiled").write_text("x")
except OSError as error:
    print("dataset", type(error).__name__, flush=True)
(output / "model.onnx").write_text((data / "train.parquet").read_text() + pathlib.Path("train.py").read_text())
"""


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    found = Folders(tmp_path, tmp_path / "code")
    for folder in (found.work, found.dataset, found.base_model, found.output):
        folder.mkdir()
    (found.dataset / "train.parquet").write_text("rows ")
    (found.work / "train.py").write_text("and code")
    return found


@pytest.fixture
def image(base_image: Path, engine: Dockerd) -> Iterator[str]:
    """Its id, in the engine."""
    with engine.client() as client:
        before = {one["Id"] for one in client.images(all=True)}
        with base_image.open("rb") as file:
            list(client.load_image(file, quiet=True))
        (made,) = {one["Id"] for one in client.images(all=True)} - before
        yield made
        client.remove_image(made, force=True)


def training(image: str, code: str) -> Training:
    return Training((WANTED.python, "-c", code), image=image)


async def test_a_container_has_the_runs_folders_and_no_network(image: str, engine: Dockerd, folders: Folders) -> None:
    log = Log()
    command = in_container(engine.address, training(image, TRAINS), folders, "t-1", "nightly")
    await execute(command, folders, {"PATH": "/usr/bin:/bin"}, 60.0, log)
    assert (folders.output / "model.onnx").read_text() == "rows and code"
    assert "interfaces ['lo']" in log.text
    assert "dataset OSError" in log.text
    with engine.client() as client:
        assert client.containers(all=True) == []


async def test_a_container_that_takes_too_long_is_removed(image: str, engine: Dockerd, folders: Folders) -> None:
    command = in_container(engine.address, training(image, "import time; time.sleep(600)"), folders, "t-2", "nightly")
    with pytest.raises(TrainingFailed, match="had not ended after 5 s"):
        await execute(command, folders, {"PATH": "/usr/bin:/bin"}, 5.0, Log())
    with engine.client() as client:
        assert client.containers(all=True) == []


async def test_an_image_or_an_engine_that_is_not_there_is_said(
    engine: Dockerd, folders: Folders, tmp_path: Path
) -> None:
    for address, words in ((engine.address, "No such image"), (f"unix://{tmp_path}/none.sock", "container engine")):
        log = Log()
        command = in_container(address, training("sha256:" + "0" * 64, "pass"), folders, "t-3", "nightly")
        with pytest.raises(TrainingFailed, match="ended with status 3"):
            await execute(command, folders, {"PATH": "/usr/bin:/bin"}, 30.0, log)
        assert words in log.text
