"""One broker for all attacks: the hub's own, or the one that the environment names (see support.target)."""

from collections.abc import Iterator

import pytest

from support.target import Target, elsewhere, shipped


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    there = elsewhere()
    if there is not None:
        yield there
        return
    with shipped(tmp_path_factory.mktemp("broker")) as ours:
        yield ours
