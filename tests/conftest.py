"""What every test may rely on. Fixtures of one room live in that room's own folder (tests/agent, tests/hub, ...).

Helpers that are not fixtures live in tests/support and are imported as `support.<name>`.
"""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout the tests run from."""
    return Path(__file__).resolve().parent.parent
