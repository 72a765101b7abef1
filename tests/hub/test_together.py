"""Questions that share looks into the database: who waits gets the answer, whatever becomes of the others."""

import asyncio
from collections.abc import Collection, Mapping

import pytest

from cloud_hub.store.together import Together


class Looks:
    """Finds of each key its length; holds each look until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.error: Exception | None = None

    async def look(self, keys: Collection[str]) -> Mapping[str, int]:
        self.groups.append(sorted(keys))
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {key: len(key) for key in keys if key != "nothing"}


async def test_questions_that_come_during_a_look_share_the_next_one() -> None:
    looks = Looks()
    together = Together(looks.look)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        first = group.create_task(together.find("a"))
        await looks.begun.wait()
        others = [group.create_task(together.find(key)) for key in ("bb", "ccc", "bb", "nothing")]
        await asyncio.sleep(0)
        looks.gate.set()
    assert first.result() == 1
    assert [task.result() for task in others] == [2, 3, 2, None]
    assert looks.groups == [["a"], ["bb", "ccc", "nothing"]]


async def test_no_answer_is_older_than_its_question() -> None:
    looks = Looks()
    together = Together(looks.look)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(together.find("a"))
        await looks.begun.wait()
        group.create_task(together.find("a"))
        await asyncio.sleep(0)
        looks.gate.set()
    assert looks.groups == [["a"], ["a"]]


async def test_whoever_is_cancelled_while_looking_leaves_the_others_their_answers() -> None:
    looks = Looks()
    together = Together(looks.look)
    first = asyncio.create_task(together.find("a"))
    await looks.begun.wait()
    second, third = asyncio.create_task(together.find("bb")), asyncio.create_task(together.find("a"))
    await asyncio.sleep(0)
    first.cancel()
    looks.gate.set()
    async with asyncio.timeout(20):
        assert (await second, await third) == (2, 1)
    await asyncio.wait([first])
    assert first.cancelled()


async def test_a_look_that_fails_fails_for_its_group_only() -> None:
    looks = Looks()
    together = Together(looks.look, most=2)
    looks.error = RuntimeError("the database is away")
    looks.gate.set()
    results = await asyncio.gather(*(together.find(key) for key in ("a", "bb")), return_exceptions=True)
    assert [str(result) for result in results] == ["the database is away"] * 2
    looks.error = None
    assert await together.find("ccc") == 3


async def test_more_than_a_group_are_looked_for_in_several() -> None:
    looks = Looks()
    looks.gate.set()
    together = Together(looks.look, most=3)
    keys = [f"{number:02d}" for number in range(10)]
    async with asyncio.timeout(20):
        assert await asyncio.gather(*(together.find(key) for key in keys)) == [2] * 10
    assert all(len(group) <= 3 for group in looks.groups)
    assert sorted(key for group in looks.groups for key in group) == keys


@pytest.mark.parametrize("key", ["nothing"])
async def test_what_is_not_there_is_none(key: str) -> None:
    looks = Looks()
    looks.gate.set()
    assert await Together(looks.look).find(key) is None
