"""Fixtures of the tests with containers: one engine and one base image for all of them."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from docker.errors import DockerException
from requests.exceptions import RequestException

from agent.config import ServingSettings, StatePaths
from agent.containers.settings import ContainerSettings
from agent.store import AgentStore
from modules.containers import Container
from modules.manifest import Resources
from support.base_image import write_base
from support.built import Built
from support.contained import WANTED, Contained, contain
from support.container_rig import QUICK, Rig
from support.dockerd import CannotRun, Dockerd

Make = Callable[..., Contained]


@pytest.fixture(scope="session")
def base_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if platform.machine() != "x86_64":
        pytest.skip("the tests' base image is made for x86_64")
    path = tmp_path_factory.mktemp("base") / "base.tar"
    write_base(path)
    yield path
    path.unlink()


@pytest.fixture(scope="session")
def engine() -> Iterator[Dockerd]:
    dockerd = Dockerd()
    try:
        dockerd.start()
    except CannotRun as error:
        dockerd.stop()
        pytest.skip(str(error))
    yield dockerd
    dockerd.stop()


@pytest.fixture(autouse=True)
def cleared(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves in the engine is not the next one's: an agent that stops while a container ends leaves it to
    the next agent's start, which finds it by its label (test_containers_that_a_killed_agent_has_left_are_removed).
    """
    yield
    if "engine" in request.fixturenames:
        with suppress(DockerException, RequestException), request.getfixturevalue("engine").client() as client:
            for left in client.containers(all=True):
                client.remove_container(left["Id"], force=True)


@pytest.fixture(scope="session")
def contained(base_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Modules in containers, each made once."""
    folder = tmp_path_factory.mktemp("images")
    made: dict[tuple[str, str, str], Contained] = {}

    def make(module: Built, wanted: Container = WANTED, resources: Resources | None = None) -> Contained:
        key = (module.sha256, str(wanted), str(resources))
        if key not in made:
            made[key] = contain(module, base_image, folder / str(len(made)), wanted, resources)
        return made[key]

    yield make
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def no_images_left(tmp_path: Path) -> Iterator[None]:
    """Some hundred megabytes for each test, which nobody looks at afterwards."""
    yield
    for folder, _, _ in os.walk(tmp_path):
        Path(folder).chmod(0o755)
    shutil.rmtree(tmp_path)


@pytest.fixture
async def make_rig(tmp_path: Path, engine: Dockerd) -> AsyncIterator[Callable[..., Rig]]:
    """Agents on one state directory, one after the other."""
    paths = StatePaths(tmp_path / "state")
    paths.root.mkdir()
    async with AgentStore(paths.database) as store:
        rigs: list[Rig] = []

        def one(settings: ServingSettings = QUICK, **containers: object) -> Rig:
            given = ContainerSettings(**({"engine": engine.address} | containers))  # type: ignore[arg-type]
            rigs.append(Rig(paths, store, given, settings))
            return rigs[-1]

        yield one
        for rig in rigs:
            await rig.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()
