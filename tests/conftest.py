"""What every test may rely on. Fixtures of one room live in that room's own folder (tests/agent, tests/hub, ...).

Helpers that are not fixtures live in tests/support and are imported as `support.<name>`.
"""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout the tests run from."""
    return Path(__file__).resolve().parent.parent


# Folders whose tests share what takes long to make: a container engine with its images, a compiled circuit.
_TOGETHER = ("containers", "fpga")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs several processes side by side, since tests wait more than they compute (`-n`, pytest-xdist).
    The tests of a file stay in one of them, because they share its fixtures.
    """
    for item in items:
        room = item.path.parent.name
        group = room if room in _TOGETHER else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
