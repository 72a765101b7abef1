"""A query as a condition on rows of `devices`: exact, in SQLite and in PostgreSQL alike. The twin of `matching`.

Conditions on NULL are neither true nor false in SQL. A device without a fact has it not: so what is negated counts
NULL as false first. Negations go down to the single conditions, where that is short to say.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    CompoundSelect,
    Float,
    and_,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    union,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from cloud_hub.errors import BadRequest
from cloud_hub.query.facts import LATE_S, MODULE, NUMBERS, TAG, Moment
from cloud_hub.query.matching import SIGNS
from cloud_hub.query.tree import Both, Compared, Either, Leaf, Node, Not
from cloud_hub.store.engine import among
from cloud_hub.store.tables import assignments, devices, executions, group_members, reported_modules


def condition(node: Node, moment: Moment, positive: bool = True) -> ColumnElement[bool]:
    """As deep as the tree, which is bounded. Raises BadRequest `query-not-resolved`."""
    if isinstance(node, Not):
        return condition(node.part, moment, not positive)
    if isinstance(node, Both | Either):
        parts = [condition(part, moment, positive) for part in node.parts]
        if isinstance(node, Both) == positive:
            return and_(true(), *parts)
        return or_(false(), *parts)
    said = _leaf(node, moment)
    return said if positive else not_(func.coalesce(said, false()))


def online(moment: Moment) -> ColumnElement[bool]:
    """Heard of lately, and not gone since: `presence.is_online` says the same of one device."""
    d = devices.c
    since = moment.now - moment.offline_after_s
    heard = or_(d.report_at >= since, d.online_at >= since)
    here = or_(d.present.is_(None), d.present, d.report_at > d.offline_at + LATE_S)
    return and_(d.retired_at.is_(None), heard, here)


def differing(ids: Collection[str] | None = None) -> CompoundSelect[Any]:
    """The ids of devices that do not report what they shall run; `reports.differences` says it of one, with words.

    Joined once for all devices, or, with `ids`, for these.
    """
    a, r = assignments.c, reported_modules.c
    key = and_(r.device == a.device, r.module == a.module, r.role == a.role)
    same = and_(key, r.version == a.version, r.verified, r.state != "failed", (r.state == "off") == (a.mode == "off"))
    short = select(a.device).select_from(assignments.outerjoin(reported_modules, same)).where(r.device.is_(None))
    surplus = select(r.device).select_from(reported_modules.outerjoin(assignments, key)).where(a.device.is_(None))
    if ids is not None:
        short, surplus = short.where(among(a.device, ids)), surplus.where(among(r.device, ids))
    return union(short, surplus)


def _leaf(leaf: Leaf, moment: Moment) -> ColumnElement[bool]:
    if isinstance(leaf, Compared) and leaf.fact.startswith(MODULE):
        r = reported_modules.c
        fits: ColumnElement[bool] = SIGNS[leaf.sign](r.version, leaf.number)  # type: ignore[arg-type,assignment]
        having = select(r.device).where(r.module == leaf.fact.removeprefix(MODULE), r.role == "main", fits)
        return devices.c.id.in_(having)
    if isinstance(leaf, Compared):
        return SIGNS[leaf.sign](_number(leaf.fact, moment), leaf.number)  # type: ignore[arg-type,return-value]
    return or_(false(), *(_text(leaf.fact, value, moment) for value in leaf.values))


def _number(fact: str, moment: Moment) -> ColumnElement[Any]:
    d = devices.c
    if fact.startswith(TAG):
        return _as_number(d.tags[fact.removeprefix(TAG)].as_string())
    if fact == "agent":
        return d.agent_number
    if fact in NUMBERS:
        column: ColumnElement[Any] = d[fact]
        return column
    since = {"last_seen": d.seen_at, "enrolled": d.created_at, "uptime": d.booted_at}[fact]
    return moment.now - since


def _text(fact: str, value: str, moment: Moment) -> ColumnElement[bool]:
    d = devices.c
    if fact == "state":
        return _state(value, moment)
    if fact == "query":
        raise BadRequest("query-not-resolved", f"query: the saved query {value!r} cannot be named here", name=value)
    if fact == "group":
        among = select(group_members.c.device).where(_fits(group_members.c.name, value))
        return d.id.in_(among)
    if fact == "rollout":
        return d.id.in_(select(executions.c.device).where(_fits(executions.c.rollout, value)))
    if fact == "accelerator":
        return _fits(d.accelerators, f"*,{value},*")
    if fact.startswith(TAG):
        return _fits(d.tags[fact.removeprefix(TAG)].as_string(), value)
    if fact in ("id", "profile"):
        return _fits(d[fact], value)
    known = func.nullif({"arch": d.arch, "agent": d.agent_version}[fact], "")
    return _fits(known, value)


def _state(state: str, moment: Moment) -> ColumnElement[bool]:
    d = devices.c
    if state == "online":
        return online(moment)
    if state == "offline":
        return not_(func.coalesce(online(moment), false()))
    if state == "never":
        return d.report_at.is_(None)
    if state == "updating":
        return d.update_state != "idle"
    if state == "failed":
        r = reported_modules.c
        return d.id.in_(select(r.device).where(r.state == "failed"))
    if state == "retired":
        return d.retired_at.is_not(None)
    differs = d.id.in_(differing())
    return differs if state == "differs" else not_(differs)


def _fits(column: ColumnElement[str], pattern: str) -> ColumnElement[bool]:
    first, star, rest = pattern.partition("*")
    if not star:
        return column == pattern
    if not rest and not first:
        return column.is_not(None)
    if not rest:
        return func.substr(column, 1, len(first)) == first
    return _Like(column, literal(_for_like(pattern)), literal(_for_glob(pattern)))


def _for_like(pattern: str) -> str:
    for special in ("\\", "%", "_"):
        pattern = pattern.replace(special, f"\\{special}")
    return pattern.replace("*", "%")


def _for_glob(pattern: str) -> str:
    return pattern.replace("[", "[[]").replace("?", "[?]")


class _Like(FunctionElement[bool]):
    """Whether a text fits a pattern, letter by letter: column, pattern of LIKE, pattern of GLOB.

    LIKE of SQLite takes large and small letters for the same.
    """

    type = Boolean()
    inherit_cache = True


@compiles(_Like)
def _like(element: _Like, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401 - SQLAlchemy's own options
    column, like, glob = element.clauses
    if compiler.dialect.name == "sqlite":
        return f"({compiler.process(column, **options)} GLOB {compiler.process(glob, **options)})"
    return f"({compiler.process(column, **options)} LIKE {compiler.process(like, **options)} ESCAPE '\\')"


class _as_number(FunctionElement[float]):
    """A text as the number that it says (as `facts.NUMBER`), NULL for any other."""

    type = Float()
    inherit_cache = True


@compiles(_as_number)
def _numbered(element: _as_number, compiler: SQLCompiler, **options: Any) -> str:  # noqa: ANN401 - as above
    (column,) = element.clauses

    def text() -> str:
        return compiler.process(column, **options)

    if compiler.dialect.name != "sqlite":
        return f"(CASE WHEN {text()} ~ '^-?[0-9]+([.][0-9]+)?$' THEN CAST({text()} AS double precision) END)"
    bare = f"(CASE WHEN {text()} GLOB '-*' THEN substr({text()}, 2) ELSE {text()} END)"
    tests = ("GLOB '[0-9]*'", "GLOB '*[0-9]'", "NOT GLOB '*[^0-9.]*'", "NOT GLOB '*.*.*'")
    shape = " AND ".join(f"{bare} {test}" for test in tests)
    return f"(CASE WHEN {shape} THEN CAST({text()} AS REAL) END)"
