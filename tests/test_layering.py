"""Holds the floors: who may import whom, what the pure rooms may touch, what the agent's parent may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from support.imports import find_cycle, import_graph, imported_names, source_files

PACKAGES = ("agent", "cloud_hub", "modules", "firmware_profiles", "mooring_client")
MAY_IMPORT = {
    "firmware_profiles": {"firmware_profiles"},
    "modules": {"modules", "firmware_profiles"},
    "agent": {"agent", "modules", "firmware_profiles"},
    "cloud_hub": {"cloud_hub", "modules", "firmware_profiles"},
    "mooring_client": {"mooring_client"},
}
PURE = ("modules", "firmware_profiles")
IMPURE_IMPORTS = {
    "aiohttp", "aiomqtt", "asyncio", "http", "paho", "random", "secrets", "select", "selectors", "socket",
    "socketserver", "ssl", "subprocess", "threading", "time", "urllib", "uuid",
}  # fmt: skip
IMPURE_CALLS = {"environ", "environb", "getenv", "now", "today", "utcnow"}
TOO_HEAVY_FOR_THE_PARENT = {"ai_edge_litert", "cv2", "docker", "numpy", "onnxruntime", "sqlalchemy", "sqlite_utils"}


@pytest.fixture(scope="module")
def files(repository: Path) -> dict[str, Path]:
    return source_files(repository, PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_its_own_floor_and_those_below(package: str, files: dict[str, Path]) -> None:
    graph = import_graph(files)
    own = [name for name in graph if name.split(".")[0] == package]
    assert own, f"no source files found in {package}"
    wrong = [
        f"{name} imports {target}"
        for name in own
        for target in sorted(graph[name])
        if target.split(".")[0] not in MAY_IMPORT[package]
    ]
    assert wrong == []


def test_nothing_that_ships_imports_tests_benchmarks_or_examples(files: dict[str, Path]) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, file in files.items()
        for imported in imported_names(ast.parse(file.read_text()))
        if imported.split(".")[0] in {"benchmarks", "examples", "support", "tests"}
    ]
    assert wrong == []


def test_no_two_files_import_each_other_even_by_a_detour(files: dict[str, Path]) -> None:
    assert " -> ".join(find_cycle(import_graph(files))) == ""


def test_a_cycle_would_be_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_pure_rooms_have_no_sockets_no_clock_and_no_environment(files: dict[str, Path]) -> None:
    wrong: list[str] = []
    for name, file in files.items():
        if name.split(".")[0] not in PURE:
            continue
        tree = ast.parse(file.read_text())
        wrong += [f"{name} imports {i}" for i in imported_names(tree) if i.split(".")[0] in IMPURE_IMPORTS]
        wrong += [
            f"{name}:{node.lineno} uses .{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr in IMPURE_CALLS
        ]
    assert wrong == []


@pytest.mark.parametrize("name", ["agent.service", "agent.cli"])
def test_the_agent_parent_loads_none_of_the_heavy_libraries(name: str, repository: Path) -> None:
    assert TOO_HEAVY_FOR_THE_PARENT & loaded_by(f"import {name}", repository) == set()


def test_what_checks_signatures_on_a_device_loads_no_library_of_a_cloud(repository: Path) -> None:
    program = (
        "import importlib.util\nfrom agent import trust\n"
        "assert importlib.util.find_spec('boto3'), 'nothing is tested: it is not installed'\n"
        "trust._reading()"
    )
    loaded = loaded_by(program, repository)
    assert "tuf" in loaded
    assert {"boto3", "botocore", *TOO_HEAVY_FOR_THE_PARENT} & loaded == set()


def loaded_by(program: str, repository: Path) -> set[str]:
    """The packages that a fresh interpreter has loaded after it."""
    program += "\nimport sys\nprint(*sorted(m for m in sys.modules if '.' not in m))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, timeout=30, check=False
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())
