"""What the methods of the hub's client ask for, read from their source: method, path, types of body and answer.

Read and not run, so that no method needs an example of its own: each says all of it in its one call of the transport.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloud_hub.operator.client import HubClient

_ASKING: Final = ("ask", "raw", "upload", "download", "append", "exchange")
# Functions beside the client that ask for it: where the path stands among their arguments, and the HTTP method.
_BESIDE: Final = {"work_out": (2, "POST"), "_events": (1, "GET")}
_ANY: Final = "{}"


@dataclass(frozen=True)
class ClientCall:
    """One question of one method. `path` has {} for each part that is a value; None is what cannot be read."""

    name: str
    method: str
    path: str
    answer: Any  # a type, or None for bytes and nothing
    body: Any
    query: frozenset[str] | None

    def asks_for(self, method: str, template: str) -> bool:
        plain = re.sub(r"\{[^}]*\}", _ANY, template)
        return self.method == method and self.path == plain


def client_calls() -> list[ClientCall]:
    """Of every method of HubClient, the inherited ones too."""
    found: list[ClientCall] = []
    for name, function in inspect.getmembers(HubClient, inspect.isfunction):
        if name.startswith("_"):
            continue
        found += _Reader(name, function).calls()
    return found


class _Reader:
    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name, self._function = name, function
        self._tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        self._names = _names(function)

    def calls(self) -> Iterator[ClientCall]:
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Call):
                continue
            called = node.func
            if (
                isinstance(called, ast.Attribute)
                and called.attr in _ASKING
                and ast.unparse(called.value) == "self._http"
            ):
                yield self._asked(node, called.attr)
            elif isinstance(called, ast.Attribute) and ast.unparse(called) == "self._file":
                yield ClientCall(self._name, "GET", self._path(node.args[0]), None, None, frozenset())
            elif isinstance(called, ast.Name) and called.id in _BESIDE:
                place, method = _BESIDE[called.id]
                answer = self._type(node.args[1]) if called.id == "work_out" else None
                body = self._type_of(node.args[3]) if called.id == "work_out" else None
                yield ClientCall(self._name, method, self._path(node.args[place]), answer, body, None)

    def _asked(self, node: ast.Call, kind: str) -> ClientCall:
        given = list(node.args)
        answer = self._type(given.pop(0)) if kind in ("ask", "upload") else None
        method = {"upload": "POST", "download": "GET", "append": "GET"}.get(kind) or ast.literal_eval(given.pop(0))
        path = self._path(given[0])
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        body = given[1] if kind in ("ask", "raw", "exchange") and len(given) > 1 else named.get("body")
        query = named.get("query") or (given[3] if kind == "download" and len(given) > 3 else None)
        return ClientCall(self._name, method, path, answer, self._type_of(body), self._query(query))

    def _type(self, node: ast.expr) -> Any:
        return eval(ast.unparse(node), self._names)  # noqa: S307 - our own source

    def _type_of(self, node: ast.expr | None) -> Any:
        """The type of an argument: made on the spot, or a parameter, or a variable that was made before."""
        if node is None or (isinstance(node, ast.Constant) and node.value is None):
            return None
        if isinstance(node, ast.Call):
            return self._type(node.func)
        if isinstance(node, ast.Name):
            made = self._assigned(node.id)
            return self._type_of(made) if made is not None else self._hint(node.id)
        return ...

    def _hint(self, name: str) -> Any:
        hint = self._function.__annotations__.get(name)
        return ... if hint is None else eval(hint, self._names)  # noqa: S307

    def _assigned(self, name: str) -> ast.expr | None:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return node.value
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                return node.value
        return None

    def _path(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.Name):
            made = self._assigned(node.id)
            assert made is not None, f"{self._name}: the path {node.id} cannot be read"
            return self._path(made)
        if isinstance(node, ast.BinOp):
            return self._path(node.left) + (self._path(node.right) if isinstance(node.right, ast.Constant) else _ANY)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "path_of":
            parts = (str(ast.literal_eval(part)) if isinstance(part, ast.Constant) else _ANY for part in node.args)
            return "".join(f"/{part}" for part in parts)
        raise AssertionError(f"{self._name}: the path {ast.unparse(node)} cannot be read")

    def _query(self, node: ast.expr | None) -> frozenset[str] | None:
        """The names in the query; None for what cannot be read."""
        if node is None:
            return frozenset()
        if isinstance(node, ast.Name):
            made = self._assigned(node.id)
            return None if made is None else self._query(made)
        if isinstance(node, ast.BinOp):
            left, right = self._query(node.left), self._query(node.right)
            return None if left is None or right is None else left | right
        if isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            return frozenset(str(key) for key in keys) if len(keys) == len(node.keys) else None
        if isinstance(node, ast.Call | ast.DictComp):
            hints = [self._hint(name) for name in _params(self._tree) if name in ast.unparse(node)]
            structs = [hint for hint in hints if inspect.isclass(hint) and issubclass(hint, msgspec.Struct)]
            return frozenset(field.encode_name for field in msgspec.structs.fields(structs[0])) if structs else None
        return None


def _params(tree: ast.stmt) -> list[str]:
    assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)
    return [argument.arg for argument in (*tree.args.args, *tree.args.kwonlyargs)]


def _names(function: Callable[..., Any]) -> dict[str, Any]:
    """What names mean in the function, those too that are imported for types only, or inside."""
    module = importlib.import_module(function.__module__)
    names = dict(vars(module))
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                imported = importlib.import_module(node.module)
                names.setdefault(alias.asname or alias.name, getattr(imported, alias.name, None))
    return names
