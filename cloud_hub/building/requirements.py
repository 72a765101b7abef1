"""What libraries a script asks for: a requirement list, or a conda file, read into plain requirements.

Only names and versions are taken: a line that names a folder, an address or another index would make the hub read or
run what its publisher did not upload. Pure; called by `building.environment`.
Source: PEP 508 (dependency specifiers), by `packaging`; pip's requirement file format for comments and hashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cloud_hub.building.conda import conda_lines, is_conda
from cloud_hub.building.device_packages import SERVING
from cloud_hub.errors import Unprocessable

MAX_TEXT_BYTES = 256 * 1024
MAX_REQUIREMENTS = 500
_HASH = re.compile(r"\s--hash[=\s](sha256:[0-9a-f]{64})(?=\s|$)")


class Wanted(msgspec.Struct, frozen=True):
    """`lines` are PEP 508 requirements, `hashes` the wheels that alone may be used, by normalised name; `left_out` what
    needs no library here, because the device serves by itself.
    """

    lines: tuple[str, ...]
    hashes: dict[str, frozenset[str]] = {}
    left_out: tuple[str, ...] = ()


def read_wanted(data: bytes, python: str) -> Wanted:
    """Raises Unprocessable `environment-invalid` with the line. `python` is the devices' version."""
    if len(data) > MAX_TEXT_BYTES:
        raise refused(f"expected at most {MAX_TEXT_BYTES} bytes, got more")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refused(f"expected text in UTF-8, got {error.reason}") from error
    lines = conda_lines(text, python) if is_conda(text) else _listed(text)
    return _wanted(lines)


def refused(text: str) -> Unprocessable:
    return Unprocessable("environment-invalid", f"environment: {text}; nothing was built")


def _listed(text: str) -> Iterable[str]:
    """Logical lines without comments."""
    joined = text.replace("\r\n", "\n").replace("\\\n", " ")
    for line in joined.split("\n"):
        bare = re.sub(r"(^|\s)#.*$", "", line).strip()
        if bare:
            yield bare


def _wanted(lines: Iterable[str]) -> Wanted:
    kept: list[str] = []
    hashes: dict[str, frozenset[str]] = {}
    left_out: list[str] = []
    for line in lines:
        requirement = _requirement(_HASH.sub("", line))
        name = canonicalize_name(requirement.name)
        if name in SERVING:
            left_out.append(name)
            continue
        kept.append(str(requirement))
        if found := _HASH.findall(line):
            hashes[name] = frozenset(found)
    if len(kept) > MAX_REQUIREMENTS:
        raise refused(f"expected at most {MAX_REQUIREMENTS} requirements, got {len(kept)}")
    return Wanted(tuple(kept), hashes, tuple(left_out))


def _requirement(line: str) -> Requirement:
    if line.startswith("-"):
        raise refused(
            f"expected NAME and versions, got the option {line[:80]!r}; indexes are the hub's ([building] in hub.toml)"
        )
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        raise refused(f"expected a requirement such as pillow>=11, got {line[:120]!r} ({_first(error)})") from error
    if requirement.url is not None:
        raise refused(
            f"{requirement.name}: expected a version, got an address; put its wheel into an index of the hub's"
        )
    return requirement


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
