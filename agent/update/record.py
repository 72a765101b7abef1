"""What the update machine keeps in the store: where it stands, what it serves, how it last ended.

One key each, written in one transaction with the state that they belong to. Read and written by
`agent.update.engine`; `agent.report` shows them.
"""

from __future__ import annotations

import msgspec

from agent.installed import ModuleSet
from agent.runtimes.past import Before
from agent.store import AgentStore
from agent.update.states import State
from modules.messages import UpdateReport

_RECORD, _CURRENT, _PREVIOUS, _LAST = "update", "update.current", "update.previous", "update.last"
MAX_REASON = 500


class Record(msgspec.Struct, frozen=True):
    """Where the machine stands. `target` is the set under way; versions are those last verified.

    `about_version` is the director version that the update is about, verified or only announced; `writes` counts state
    writes since idle, `attempt` tries of the same director version. `ended`: the update has had its final word.
    `refused`: by verification, so its content was never known. `reverted`: the update had served before it failed.
    `before` is, by name, how the modules did that the target replaced; new ones are held against it in probation.
    `staged`: bytes that lay in staging when a download was last resumed.
    """

    state: State = State.IDLE
    director_version: int = 0
    image_version: int = 0
    about_version: int = 0
    target: ModuleSet = ModuleSet()
    deployments: tuple[str, ...] = ()
    writes: int = 0
    attempt: int = 0
    reason_key: str = ""
    reason: str = ""
    ended: bool = False
    refused: bool = False
    reverted: bool = False
    before: dict[str, Before] = {}
    staged: int = 0

    def blamed(self, key: str, text: str) -> Record:
        """With this reason, unless there is one already: the first is the cause."""
        return self if self.reason_key else msgspec.structs.replace(self, reason_key=key, reason=text[:MAX_REASON])


class Ledger:
    """Everything durable about updates, read once at start; every change is on the disk before it is believed."""

    def __init__(self, store: AgentStore) -> None:
        self._store = store
        self.record = Record()
        self.current = ModuleSet()
        self.previous = ModuleSet()
        self.last = UpdateReport(state="idle")

    async def open(self) -> None:
        self.record = await self._store.get(_RECORD, Record) or self.record
        self.current = await self._store.get(_CURRENT, ModuleSet) or self.current
        self.previous = await self._store.get(_PREVIOUS, ModuleSet) or self.previous
        self.last = await self._store.get(_LAST, UpdateReport) or self.last

    async def counters(self) -> dict[str, int]:
        """Release counters below which nothing is installed, by module name."""
        return await self._store.counters()

    def believe(self, **fields: object) -> None:
        """Changes the record in memory only; `enter` writes it together with the state it leads to."""
        self.record = msgspec.structs.replace(self.record, **fields)

    async def enter(self, record: Record, last: UpdateReport | None = None) -> None:
        """Persists a state, and with it the report of an update that has ended."""
        values: dict[str, object] = {_RECORD: record}
        if last is not None:
            values[_LAST] = last
        await self._store.put_all(values)
        self.record = record
        self.last = last if last is not None else self.last

    async def commit(self, modules: ModuleSet) -> None:
        """`modules` is what this device serves from now on; release counters rise in the same transaction.

        Repeating it changes nothing. A candidate raises no counter: the version that serves beside it is older.
        """
        previous = self.current if self.current.digests != modules.digests else self.previous
        raised = {module.name: module.release_counter for module in modules.modules if not module.candidate}
        await self._store.put_all({_CURRENT: modules, _PREVIOUS: previous}, raised)
        self.current, self.previous = modules, previous
