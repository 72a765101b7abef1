"""The store keeps what it was told, through a power cut, and moves release counters only forward."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.config import AgentConfig, StatePaths
from agent.errors import ConfigError, StoreError
from agent.schema import MIGRATIONS, migrate
from agent.store import SCHEMA_VERSION, AgentStore, _connect


class Something(msgspec.Struct, frozen=True):
    name: str
    numbers: tuple[int, ...] = ()


async def test_a_value_comes_back_as_the_type_it_was_put_in_with(agent_store: AgentStore) -> None:
    await agent_store.put("thing", Something("a", (1, 2)))
    assert await agent_store.get("thing", Something) == Something("a", (1, 2))


async def test_a_key_that_was_never_put_is_none(agent_store: AgentStore) -> None:
    assert await agent_store.get("nothing", Something) is None


async def test_putting_none_deletes_the_key(agent_store: AgentStore) -> None:
    await agent_store.put_all({"a": 1, "b": 2})
    await agent_store.put_all({"a": None, "b": 3})
    assert (await agent_store.get("a", int), await agent_store.get("b", int)) == (None, 3)


async def test_a_value_of_another_type_is_an_error_with_the_key(agent_store: AgentStore) -> None:
    await agent_store.put("thing", "words")
    with pytest.raises(StoreError, match="the value of thing is not a Something"):
        await agent_store.get("thing", Something)


async def test_counters_are_raised_and_never_lowered(agent_store: AgentStore) -> None:
    await agent_store.put_all({}, counters={"digits": 5, "faces": 1})
    await agent_store.put_all({}, counters={"digits": 3, "faces": 2})
    assert await agent_store.counters() == {"digits": 5, "faces": 2}


async def test_ports_are_remembered(agent_store: AgentStore) -> None:
    await agent_store.put_port("digits", 9000)
    await agent_store.put_port("digits", 9001)
    assert await agent_store.ports() == {"digits": 9001}


async def test_an_exception_in_the_work_rolls_everything_back(agent_store: AgentStore) -> None:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("insert into meta(key, value) values('x', '1')")
        raise LookupError("changed my mind")

    with pytest.raises(LookupError, match="changed my mind"):
        await agent_store.run(work)
    assert await agent_store.get("x", int) is None


async def test_what_sqlite_says_is_a_store_error(agent_store: AgentStore) -> None:
    with pytest.raises(StoreError, match="no such table: nowhere"):
        await agent_store.run(lambda connection: connection.execute("select * from nowhere"))


async def test_values_survive_the_store(state_dir: StatePaths) -> None:
    async with AgentStore(state_dir.database) as store:
        await store.put("kept", 7)
    async with AgentStore(state_dir.database) as store:
        assert await store.get("kept", int) == 7
    assert state_dir.database.stat().st_mode & 0o777 == 0o600


async def test_a_closed_store_says_so(state_dir: StatePaths) -> None:
    async with AgentStore(state_dir.database) as store:
        pass
    with pytest.raises(StoreError, match="not open"):
        await store.put("late", 1)


async def test_a_put_that_returned_survives_a_kill(state_dir: StatePaths) -> None:
    program = (
        "import asyncio, sys, pathlib\nfrom agent.store import AgentStore\n"
        "async def main():\n"
        "    async with AgentStore(pathlib.Path(sys.argv[1])) as store:\n"
        "        for number in range(10**9):\n"
        "            await store.put('number', number)\n"
        "            print(number, flush=True)\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(state_dir.database)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.stdout.close()
    process.wait(timeout=10)
    async with AgentStore(state_dir.database) as store:
        kept = await store.get("number", int)
    last = int([line for line in said if line.endswith("\n")][-1])
    assert kept is not None
    assert kept in (last, last + 1)


async def test_a_database_of_a_newer_agent_is_refused(state_dir: StatePaths) -> None:
    async with AgentStore(state_dir.database):
        pass
    connection = sqlite3.connect(state_dir.database)
    connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="expected schema 1 at most, got 99") as caught:
        async with AgentStore(state_dir.database):
            pass
    assert caught.value.key == "store-newer"


async def test_a_file_that_is_no_database_is_refused(state_dir: StatePaths) -> None:
    state_dir.database.write_bytes(b"not a database at all, not even nearly one, however long it gets" * 20)
    with pytest.raises(StoreError, match="not a database"):
        async with AgentStore(state_dir.database):
            pass


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    assert migrate(tmp_path / "a.sqlite3") == SCHEMA_VERSION == len(MIGRATIONS)
    assert migrate(tmp_path / "a.sqlite3") == SCHEMA_VERSION


async def test_many_writers_at_once_are_served_in_turn(agent_store: AgentStore) -> None:
    await asyncio.gather(*(agent_store.put(f"key-{number}", number) for number in range(50)))
    assert [await agent_store.get(f"key-{number}", int) for number in range(50)] == list(range(50))


def test_a_configuration_reads_back_as_it_was_written(agent_config: AgentConfig, state_dir: StatePaths) -> None:
    assert AgentConfig.load(state_dir) == agent_config


def test_a_wrong_configuration_names_the_field(agent_config: AgentConfig, state_dir: StatePaths) -> None:
    state_dir.config.write_text(agent_config.to_toml().replace("connect_timeout_s = 2.0", 'connect_timeout_s = "soon"'))
    with pytest.raises(ConfigError, match=r"\$.link.connect_timeout_s"):
        AgentConfig.load(state_dir)


def test_a_device_without_configuration_is_not_enrolled(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not enrolled") as caught:
        AgentConfig.load(StatePaths(tmp_path))
    assert caught.value.key == "not-enrolled"


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open database file"):
        _connect(tmp_path)
