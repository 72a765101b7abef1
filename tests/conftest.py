"""What every test may rely on. Fixtures of one room live in that room's own folder (tests/agent, tests/hub, ...).

Helpers that are not fixtures live in tests/support and are imported as `support.<name>`.
"""

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout the tests run from."""
    return Path(__file__).resolve().parent.parent


# Folders whose tests share what takes long to make: a container engine with its images, a compiled circuit.
_TOGETHER = ("containers", "fpga", "postgres")


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """`make test` runs several processes side by side, since tests wait more than they compute. The tests of a file
    stay in one of them, because they share its fixtures.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        room = Path(file).parent.name
        return room if room in _TOGETHER else file


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    return _ByFile(config, log)
