"""Those tests of tests/hub/test_groups.py that ask the database something of their own: a whole hub on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hub.test_groups import (  # noqa: F401
    admin,
    furnish,
    lab,
    test_a_device_that_is_retired_leaves_its_groups,
    test_a_group_is_filled_by_hand_and_by_a_query_and_named_in_queries,
    test_a_group_is_made_once,
    test_saved_queries_stand_in_others_and_mean_what_they_mean_now,
    test_whoever_has_a_scope_sees_and_changes_their_own_part_of_groups,
)
from support.fleets import World, open_world
from support.postgres import Postgres


@pytest.fixture
async def world(postgres: Postgres, tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path, database=postgres.create("groups")) as world:
        await furnish(world)
        yield world
    postgres.drop("groups")
