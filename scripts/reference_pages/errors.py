"""Every stable error key, found in the source text: who raises it, in which words. Nothing is imported to find out.

A key is known from a class that has `key = "..."`, from a call of an error class with a literal key, or from the list
"Keys: a, b." in the docstring of an error class (keys that are passed on from somewhere else).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("firmware_profiles", "modules", "agent", "cloud_hub")
# What has a key and is no exception: the hub's refusal on the wire, the worker's word to its parent, why an entry
# of a device's outbox could not be used, and why a probation failed.
_SPOKEN = (
    "modules.messages.Refusal",
    "agent.sandbox.protocol.Broken",
    "cloud_hub.monitoring.intake.Problem",
    "agent.update.probation.Judgement",
)
# Methods that write an update's reason down: key, then text.
_BLAMES = frozenset({"blamed", "_blame"})
_KEY = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LISTED = re.compile(r"(?:Keys|Attacks and faults of the hub|Not attacks): (.*?)(?:\.(?:\s|$)|$)", re.DOTALL)
_TITLES = {
    "cloud_hub": (
        "The hub",
        'The API answers with the status and `{"error": {"key", "message", "fields"}}`; the commands print '
        "the message and end with a status other than 0.",
    ),
    "agent": (
        "The agent",
        "Shown by `mooring-agent`, in the device's report as the reason of an update, an attack or a failed module.",
    ),
    "modules": (
        "What is shipped and said",
        "Something does not have the form that it must have. Hub and agent pass these keys on.",
    ),
    "firmware_profiles": ("Device profiles", ""),
}


@dataclass(frozen=True)
class Use:
    """One place that gives an error its key."""

    key: str
    family: str  # the class
    status: int | None  # of the HTTP answer
    where: str  # package.module
    text: str  # the message, with … for what is filled in


@dataclass(frozen=True)
class _Class:
    name: str
    bases: tuple[str, ...]
    key: str
    status: int | None
    doc: str


def find(root: Path) -> list[Use]:
    """Every use of a key, sorted by package, key and place."""
    trees = {_dotted(root, file): ast.parse(file.read_text()) for file in _files(root)}
    classes = {f"{module}.{c.name}": c for module, tree in trees.items() for c in _classes(module, tree)}
    errors = {name for name in classes if name in _SPOKEN or _is_error(name, classes)}
    uses = set[Use]()
    for name in errors:
        uses.update(_declared(name, classes))
    for module, tree in trees.items():
        uses.update(_raised(module, tree, classes, errors))
        uses.update(_through_helpers(module, tree, classes, errors))
    return sorted(uses, key=lambda use: (use.where.split(".")[0], use.key, use.where, use.text, use.family))


def page(uses: list[Use]) -> str:
    """errors.md: one table per package, one line per key."""
    parts = [
        "# Error keys\n",
        "Keys are stable: match and count them, not the messages, which are for people and may change. `…` stands for",
        "a value. A family is the class that a program catches; see [troubleshooting](../operate/troubleshooting.md)",
        "for what to do.",
    ]
    for package in ("cloud_hub", "agent", "modules", "firmware_profiles"):
        mine = [use for use in uses if use.where.split(".")[0] == package]
        if mine:
            title, words = _TITLES[package]
            parts += [f"\n## {title}\n", *([words + "\n"] if words else []), *_table(mine)]
    return "\n".join(parts) + "\n"


def _table(uses: list[Use]) -> Iterator[str]:
    yield "| Key | Family | Says | Where |"
    yield "|---|---|---|---|"
    for key in sorted({use.key for use in uses}):
        mine = [use for use in uses if use.key == key]
        families = sorted({f"{use.family} {use.status}" if use.status else use.family for use in mine})
        texts = list(dict.fromkeys(use.text for use in mine if use.text))
        places = sorted({use.where for use in mine if use.text} or {use.where for use in mine})
        says = "<br>".join(text.replace("|", "\\|").replace("<", "&lt;") for text in texts[:3])
        said = f"{says}<br>…" if len(texts) > 3 else says
        yield f"| `{key}` | {', '.join(families)} | {said} | {', '.join(f'`{place}`' for place in places)} |"


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def _dotted(root: Path, file: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _classes(module: str, tree: ast.Module) -> Iterator[_Class]:
    names = _names(module, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            bases = tuple(names.get(base.id, base.id) for base in node.bases if isinstance(base, ast.Name))
            values = dict(_assigned(node))
            key, status = values.get("key"), values.get("status")
            doc = ast.get_docstring(node) or ""
            yield _Class(
                node.name, bases, key if isinstance(key, str) else "", status if isinstance(status, int) else None, doc
            )


def _assigned(node: ast.ClassDef) -> Iterator[tuple[str, object]]:
    """Literal values given in the class's body."""
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        value = getattr(line, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            yield target.id, value.value


def _names(module: str, tree: ast.Module) -> dict[str, str]:
    """What each name in the file stands for: classes defined here, and names imported from ours."""
    names = {node.name: f"{module}.{node.name}" for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _is_error(name: str, classes: Mapping[str, _Class]) -> bool:
    known = classes.get(name)
    if known is None:
        return name in ("Exception", "RuntimeError", "ValueError", "OSError", "ConnectionError")
    return any(_is_error(base, classes) for base in known.bases)


def _status(name: str, classes: Mapping[str, _Class]) -> int | None:
    known = classes.get(name)
    if known is None:
        return None
    return known.status or next((s for base in known.bases if (s := _status(base, classes)) is not None), None)


def _default_key(name: str, classes: Mapping[str, _Class]) -> str:
    known = classes.get(name)
    if known is None:
        return ""
    return known.key or next((key for base in known.bases if (key := _default_key(base, classes))), "")


def _declared(name: str, classes: Mapping[str, _Class]) -> Iterator[Use]:
    """A class's own key, with its docstring's first sentence; and the keys that its docstring lists."""
    known = classes[name]
    sentence = _first_sentence(known.doc)
    if known.key:
        yield Use(known.key, known.name, _status(name, classes), name.rpartition(".")[0], sentence)
    for listed in _LISTED.findall(known.doc):
        for key in re.split(r",\s*|\s+or\s+", " ".join(listed.split())):
            if _KEY.fullmatch(key):
                yield Use(key, known.name, _status(name, classes), name.rpartition(".")[0], "")


def _raised(module: str, tree: ast.Module, classes: Mapping[str, _Class], errors: set[str]) -> Iterator[Use]:
    names = _names(module, tree)
    for texts, call in _calls(tree):
        if isinstance(call.func, ast.Attribute) and call.func.attr in _BLAMES and len(call.args) == 2:
            for key in filter(None, _keys(call.args[:1], texts)):
                yield Use(key, "reason of an update", None, module, _text(call.args[1], texts))
        name = names.get(call.func.id, "") if isinstance(call.func, ast.Name) else ""
        if name not in errors:
            continue
        values = [*call.args, *(word.value for word in call.keywords if word.arg in ("key", "message", "text"))]
        said = [text for value in values if not _is_key(value) and (text := _text(value, texts))]
        for key in _keys(values, texts) or [_default_key(name, classes)]:
            if key:
                yield Use(key, classes[name].name, _status(name, classes), module, said[0] if said else "")


def _through_helpers(module: str, tree: ast.Module, classes: Mapping[str, _Class], errors: set[str]) -> Iterator[Use]:
    """Keys given to a function of the file that makes the error: `_refused(device, "used", ...)`."""
    names = _names(module, tree)
    for helper in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        place = next((i for i, one in enumerate(helper.args.args) if one.arg == "key"), -1)
        made = [c for _, c in _calls(helper) if isinstance(c.func, ast.Name) and names.get(c.func.id) in errors]
        forms = [form for call in made for value in call.args if (form := _form(value))]
        if place < 0 or not forms:
            continue
        name = names[made[0].func.id] if isinstance(made[0].func, ast.Name) else ""
        for texts, call in _calls(tree):
            if isinstance(call.func, ast.Name) and call.func.id == helper.name and len(call.args) > place:
                said = next(filter(None, (_text(value, texts) for value in call.args[place + 1 :])), "")
                for key in _keys([call.args[place]], texts):
                    if key:
                        yield Use(forms[0].format(key), classes[name].name, _status(name, classes), module, said)


def _form(value: ast.expr) -> str:
    """How an argument is made of `key`: "{}" for the name itself, "token-{}" for f"token-{key}"; else empty."""
    if isinstance(value, ast.Name) and value.id == "key":
        return "{}"
    if not isinstance(value, ast.JoinedStr) or len(value.values) > 2:
        return ""
    parts = [
        "{}"
        if isinstance(part, ast.FormattedValue) and ast.unparse(part.value) == "key"
        else str(part.value)
        if isinstance(part, ast.Constant)
        else "…"
        for part in value.values
    ]
    return "".join(parts) if "{}" in parts and "…" not in parts else ""


def _keys(values: list[ast.expr], texts: Mapping[str, ast.expr]) -> list[str]:
    """The literal keys among the arguments; [""] when the key is somebody else's that is passed on."""
    for value in values:
        chosen = texts.get("key", value) if isinstance(value, ast.Name) and value.id == "key" else value
        literals = [one.value for one in ast.walk(chosen) if isinstance(one, ast.Constant) and _is_key(one)]
        if literals and isinstance(chosen, ast.Constant | ast.IfExp):
            return [str(literal) for literal in literals]
        if (isinstance(value, ast.Name) and value.id == "key") or (
            isinstance(value, ast.Attribute) and value.attr == "key"
        ):
            return [""]
    return []


def _calls(tree: ast.Module) -> Iterator[tuple[dict[str, ast.expr], ast.Call]]:
    """Every call, with what was assigned to names in the function it stands in."""

    def walk(node: ast.AST, texts: dict[str, ast.expr]) -> Iterator[tuple[dict[str, ast.expr], ast.Call]]:
        for child in ast.iter_child_nodes(node):
            inside = _assignments(child) if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else texts
            if isinstance(child, ast.Call):
                yield texts, child
            yield from walk(child, inside)

    yield from walk(tree, {})


def _assignments(function: ast.AST) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, node.value)
    return found


def _is_key(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, str) and bool(_KEY.fullmatch(value.value))


def _text(value: ast.expr, texts: Mapping[str, ast.expr]) -> str:
    """A message's text with … for what is filled in; empty when it is all filled in."""
    if isinstance(value, ast.Name) and value.id in texts:
        value = texts[value.id]
    if isinstance(value, ast.Constant):
        return " ".join(value.value.split()) if isinstance(value.value, str) else ""
    if isinstance(value, ast.JoinedStr):
        parts = (part.value if isinstance(part, ast.Constant) else "…" for part in value.values)
        text = " ".join("".join(str(part) for part in parts).split())
        return text if re.search(r"[a-z]{2}", text) else ""
    inner = (_text(one, {}) for one in ast.walk(value) if isinstance(one, ast.JoinedStr))
    return next(filter(None, inner), "")


def _first_sentence(doc: str) -> str:
    return re.split(r"(?<=\.)\s", " ".join(doc.split()), maxsplit=1)[0]
