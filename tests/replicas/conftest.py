"""One site for the tests of this folder: two replicas, PostgreSQL, a bucket, a broker."""

from collections.abc import Iterator

import pytest

from support.replicas import Site, running_site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site
