"""What a device never does, read from the source of everything that runs on it: whole families of attacks end there.

Rows 37 and 38 (archives), 43 and 44 (pickles and other formats that run code), 47 (shells).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from modules.errors import ManifestError
from modules.manifest import Lineage, Manifest, Runtime, decode_manifest, encode_manifest

ARCHIVES = {"tarfile", "zipfile", "shutil.unpack_archive", "shutil.make_archive", "zipimport", "libarchive"}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "torch", "marshal", "shelve", "keras", "tensorrt"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "asyncio.create_subprocess_shell", "pty"}
# The agent's own wheels, signed by who may sign agents; what they may not do is in tests/agent/test_release_unpack.py.
WHEELS = "agent/release/unpack.py"
# Runs on the hub, in a child process, and reads what an operator has uploaded; no device starts it.
ANSWERS = "agent/backends/answers.py"
# Writes the headers of a layer for an engine; it opens none.
LAYERS = "modules/layers.py"
HEADERS = {f"tarfile.{name}" for name in ("TarInfo", "REGTYPE", "DIRTYPE", "BLOCKSIZE", "GNU_FORMAT")} | {"tarfile"}
NUMPY_FILES = {"np.load", "numpy.load", "np.fromfile", "numpy.fromfile"}
NAMES = ("digits; reboot", "$(reboot)", "`id`", "a b", "a\nb", "-rf", "../x", "a|b", "a&b", "a>b", "a'b", 'a"b')


def sources(repository: Path) -> Iterator[tuple[str, ast.AST]]:
    for package in ("agent", "modules", "firmware_profiles"):
        for path in sorted((repository / package).rglob("*.py")):
            yield str(path.relative_to(repository)), ast.parse(path.read_text())


def used(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported, and dotted names that are used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


@pytest.mark.parametrize("family", [ARCHIVES, PICKLES, SHELLS, NUMPY_FILES], ids=["37", "44", "47", "38"])
def test_no_archive_pickle_or_shell_is_ever_opened_on_a_device(family: set[str], repository: Path) -> None:
    found = [
        (path, name)
        for path, tree in sources(repository)
        for name in used(tree)
        if (name in family or name.partition(".")[0] in family)
        and not (path == WHEELS and family is ARCHIVES)
        and not (path == ANSWERS and family in (ARCHIVES, NUMPY_FILES))
        and not (path == LAYERS and name in HEADERS)
    ]
    assert found == []


def test_every_process_is_started_from_a_list_of_arguments(repository: Path) -> None:
    """Row 47."""
    shells = [
        path
        for path, tree in sources(repository)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert shells == []


def spoilt(**changed: object) -> bytes:
    good = Manifest("digits", 1, "pi", Lineage("digits", 1), (), (), (), Runtime(model=""))
    assert decode_manifest(encode_manifest(good)) == good
    return msgspec.json.encode({**msgspec.json.decode(encode_manifest(good)), **changed})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["name", "profile"])
def test_a_name_that_a_shell_would_obey_is_no_name(field: str, name: str) -> None:
    """Row 47: module and profile names are also folders, topics and arguments."""
    with pytest.raises(ManifestError, match=f"manifest.{field}: expected"):
        decode_manifest(spoilt(**{field: name}))


@pytest.mark.parametrize(
    "backend", ["pickle", "torch", "keras", "joblib", "tensorrt", "sh", "", "acme.", ".acme", "a/b.c"]
)
def test_a_format_that_runs_code_is_no_backend(backend: str) -> None:
    """Row 44: what a module may be is an allow-list."""
    with pytest.raises(ManifestError, match="backend"):
        decode_manifest(spoilt(runtime={"backend": backend, "model": ""}))
