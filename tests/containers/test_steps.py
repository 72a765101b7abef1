"""Further steps on a base, by an engine beside the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_hub.errors import Unavailable, Unprocessable
from cloud_hub.images.base import read_base
from cloud_hub.images.settings import ImageSettings
from cloud_hub.images.steps import run_steps
from support.contained import WANTED
from support.dockerd import Dockerd

pytestmark = pytest.mark.timeout(180)  # the first one starts an engine, and makes an image


def written(folder: Path, text: str) -> Path:
    path = folder / "Dockerfile"
    path.write_text(text)
    return path


async def test_steps_are_run_on_the_base_and_leave_nothing_in_the_engine(
    base_image: Path, engine: Dockerd, tmp_path: Path
) -> None:
    steps = written(
        tmp_path, f"ENV GREETING=hello\nRUN [\"{WANTED.python}\", \"-c\", \"open('/made', 'w').write('x')\"]"
    )
    settings = ImageSettings(engine=engine.address)
    with engine.client() as client:
        before = {image["Id"] for image in client.images(all=True)}
        made = await run_steps(base_image, steps, "amd64", settings, tmp_path / "out" / "made.tar")
        assert {image["Id"] for image in client.images(all=True)} == before
    image = read_base(made, "amd64", tmp_path / "layers")
    assert "GREETING=hello" in image.config["config"]["Env"]
    assert len(image.layers) == 2
    assert b"made" in image.layers[1].path.read_bytes()


@pytest.mark.parametrize(
    ("text", "words"),
    [("FROM scratch\nRUN true", "without FROM"), ("RUN nowhere --to be found", "Dockerfile")],
)
async def test_steps_that_fail_say_so(base_image: Path, engine: Dockerd, tmp_path: Path, text: str, words: str) -> None:
    settings = ImageSettings(engine=engine.address)
    with pytest.raises(Unprocessable, match=words) as caught:
        await run_steps(base_image, written(tmp_path, text), "amd64", settings, tmp_path / "made.tar")
    assert caught.value.key == "dockerfile-refused"


async def test_an_engine_that_is_not_there_is_said_to_be_so(base_image: Path, tmp_path: Path) -> None:
    settings = ImageSettings(engine=f"unix://{tmp_path}/docker.sock")
    with pytest.raises(Unavailable, match="engine"):
        await run_steps(base_image, written(tmp_path, "ENV A=b"), "amd64", settings, tmp_path / "made.tar")
