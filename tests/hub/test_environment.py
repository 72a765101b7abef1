"""Libraries of a script: asked for as a list or a conda file, resolved for the device, locked, unpacked as files."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cloud_hub.building.device_packages import DEVICE
from cloud_hub.building.environment import environment, target_of
from cloud_hub.building.requirements import read_wanted
from cloud_hub.building.resolve import Resolver, Target
from cloud_hub.building_settings import BuildingSettings
from cloud_hub.errors import Unavailable, Unprocessable
from firmware_profiles.catalog import built_in
from support.libraries import resolver, shelf, write_source, write_wheel

X86 = Target("x86_64", "3.11", "2.28")
ARM = Target("aarch64", "3.11", "2.28")
Build = Callable[..., object]


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    return shelf(tmp_path / "wheels")


async def built(tmp_path: Path, wheels: Path, text: str, target: Target = X86, **settings: object) -> dict[str, bytes]:
    """The environment's files by path."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    (work / "asked").write_text(text)
    found = await environment(work / "asked", target, resolver(wheels, **settings), work)
    return {path: source.read_bytes() for path, source in found.items()}


async def test_a_list_becomes_files_with_a_lock_of_exact_versions_and_hashes(tmp_path: Path, wheels: Path) -> None:
    files = await built(tmp_path, wheels, "greeting>=1  # says hello\n\n")
    assert {path for path in files if not path.endswith(("METADATA", "WHEEL", ".pyc"))} == {
        "environment/greeting/__init__.py",
        "environment/greeting/a/__init__.py",
        "environment/greeting/b/__init__.py",
        "environment/politeness/__init__.py",
        "environment/politeness/core.x86_64.so",
        "requirements.lock",
    }
    lock = files["requirements.lock"].decode()
    assert "# Python 3.11, x86_64-manylinux_2_28" in lock
    assert "# asked: greeting>=1" in lock
    assert lock.count("--hash=sha256:") == 2
    assert "greeting==1.0" in lock
    assert "politeness==1.2" in lock


async def test_the_wheels_are_those_of_the_devices_architecture_and_not_of_the_hubs(
    tmp_path: Path, wheels: Path
) -> None:
    files = await built(tmp_path, wheels, "greeting", ARM)
    assert files["environment/politeness/core.aarch64.so"] == b"aarch64"
    assert "environment/politeness/core.x86_64.so" not in files


async def test_the_same_list_gives_the_same_files(tmp_path: Path, wheels: Path) -> None:
    assert await built(tmp_path, wheels, "greeting") == await built(tmp_path, wheels, "greeting")


async def test_what_the_device_has_itself_is_not_shipped(tmp_path: Path, wheels: Path) -> None:
    write_wheel(wheels, "counts", "1.0", {"counts.py": b""}, ["numpy>=1"])
    files = await built(tmp_path, wheels, "counts\nnumpy\nazureml-defaults\n")
    assert "environment/counts.py" in files
    assert not [path for path in files if "numpy" in path]
    assert "# the device serves by itself: azureml-defaults" in files["requirements.lock"].decode()


async def test_a_library_that_needs_another_numpy_than_devices_have_is_refused(tmp_path: Path, wheels: Path) -> None:
    write_wheel(wheels, "oldcounts", "1.0", {"oldcounts.py": b""}, ["numpy<2"])
    with pytest.raises(Unprocessable, match="numpy") as refused:
        await built(tmp_path, wheels, "oldcounts")
    assert refused.value.key == "environment-unresolved"


def test_what_devices_have_is_what_the_agent_asks_for() -> None:
    """Each bound of the table stands in pyproject.toml."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [Requirement(text) for name in ("agent", "onnx", "onnx-gpu", "tflite") for text in extras[name]]
    asked += [Requirement(text) for text in project["dependencies"]]
    bounds = {requirement.name: str(requirement.specifier) for requirement in asked}
    assert {name: bounds[name] for name in DEVICE} == DEVICE


@pytest.mark.parametrize("python", ["3.12", "3.13"])
async def test_a_wheel_for_another_python_is_refused_by_name(tmp_path: Path, wheels: Path, python: str) -> None:
    with pytest.raises(Unprocessable, match="politeness"):
        await built(tmp_path, wheels, "politeness", Target("x86_64", python, "2.28"))


async def test_a_source_archive_is_refused_and_not_built(tmp_path: Path, wheels: Path) -> None:
    write_source(wheels, "sources_only", "1.0")
    with pytest.raises(Unprocessable, match=r"sources.only.*wheels only"):
        await built(tmp_path, wheels, "sources_only")
    assert not (wheels / "was-built").exists()


async def test_hashes_that_the_publisher_names_are_the_only_ones_taken(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(Unprocessable, match=r"greeting==1\.0: none of its wheels has a hash that the list names"):
        await built(tmp_path, wheels, f"greeting==1.0 \\\n  --hash=sha256:{'0' * 64}\n")
    lock = (await built(tmp_path, wheels, "greeting"))["requirements.lock"].decode()
    good = next(line.strip() for line in lock.splitlines() if "--hash" in line)
    again = await built(tmp_path, wheels, f"greeting==1.0 {good}\n")
    assert again["requirements.lock"].decode().count("--hash") == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("-r other.txt", "got the option '-r other.txt'"),
        ("--index" + "-url https://example.org/simple", "got the option"),
        ("-e .", "got the option '-e .'"),
        ("greeting @ file:///etc/passwd", "expected a version, got an address"),
        ("greeting @ git+https://example.org/x", "got an address"),
        ("./wheel.whl", "expected a requirement such as"),
        ("greeting >> 1", "expected a requirement such as"),
        ("x" * 300_000, "expected at most 262144 bytes"),
        ("a==1\n" * 501, "expected at most 500 requirements"),
        ("\udcff", "expected text in UTF-8"),
    ],
)
def test_a_list_that_names_more_than_libraries_is_refused(text: str, words: str) -> None:
    with pytest.raises(Unprocessable, match=words) as refused:
        read_wanted(text.encode(errors="surrogateescape"), "3.11")
    assert refused.value.key == "environment-invalid"
    assert "nothing was built" in refused.value.message


CONDA = """
name: score
channels: [conda-forge]
dependencies:
  - python=3.11
  - conda-forge::pillow=11.1
  - numpy >=2,<3
  - pytorch==2.6.0
  - pip
  - pip:
      - azureml-defaults==1.60
      - greeting>=1
"""


def test_a_conda_file_is_read_where_its_packages_mean_the_same() -> None:
    wanted = read_wanted(CONDA.encode(), "3.11")
    assert wanted.lines == ("pillow==11.1.*", "numpy<3,>=2", "torch==2.6.0", "greeting>=1")
    assert wanted.left_out == ("azureml-defaults",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cudatoolkit=11.8", "cudatoolkit: no wheel is known to be the same"),
        ("opencv", "opencv: no wheel is known"),
        ("numpy=1.26=py311_0", "without a build"),
        ("numpy=1.26|1.27", "without alternatives|without a build"),
        ("python=3.8", "devices have 3.11, which a module cannot change"),
        ("'!!python/object:os.system x'", "expected NAME or NAME=VERSION"),
        ("{conda: [x]}", "expected a package or a list under pip"),
        ("[[x]]", "expected a package"),
    ],
)
def test_a_conda_file_with_what_is_no_wheel_is_refused_by_name(line: str, words: str) -> None:
    with pytest.raises(Unprocessable, match=words):
        read_wanted(f"dependencies:\n  - {line}\n".encode(), "3.11")


@pytest.mark.parametrize("text", ["dependencies: 3", "dependencies: [", "dependencies:\n a: b", "dependencies: !!x y"])
def test_a_conda_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Unprocessable, match="conda file"):
        read_wanted(text.encode(), "3.11")


async def test_a_wheel_cannot_leave_its_folder(tmp_path: Path, wheels: Path) -> None:
    write_wheel(wheels, "outside", "1.0", {"../../../escaped.py": b"", "outside.py": b""})
    files = await built(tmp_path, wheels, "outside")
    assert "environment/outside.py" in files
    assert not any("escaped" in path for path in files)
    assert not list(tmp_path.rglob("escaped.py"))


OURS = {"environment/__pycache__/odd.cpython-311.pyc", "environment/_odd/__pycache__/_private.cpython-311.pyc"}


async def test_scripts_byte_code_and_startup_files_of_wheels_stay_out(tmp_path: Path, wheels: Path) -> None:
    files = {
        "odd.py": b"", "odd.pth": b"import os", "__pycache__/odd.cpython-311.pyc": b"",
        "odd-1.0.data/scripts/odd": b"#!python\n", "odd_data/a b (1).txt": b"x", "_odd/_private.py": b"",
    }  # fmt: skip
    write_wheel(wheels, "odd", "1.0", {**files, "stray.pyc": b"x"})
    found = await built(tmp_path, wheels, "odd")
    assert {path for path in found if "dist-info" not in path and path not in OURS} == {
        "environment/odd.py",
        "environment/_odd/_private.py",
        "requirements.lock",
    }


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the hub compiles for its own Python only")
async def test_byte_code_comes_with_the_libraries_and_is_the_hubs_own(tmp_path: Path, wheels: Path) -> None:
    broken = {"good.py": b"x = 1\n", "template.py": b"x = {{ y }\n", "__pycache__/good.cpython-311.pyc": b"evil"}
    write_wheel(wheels, "good", "1.0", broken)
    files = await built(tmp_path, wheels, "good")
    code = files["environment/__pycache__/good.cpython-311.pyc"]
    assert code[:4] == importlib.util.MAGIC_NUMBER
    assert code[4:8] == b"\1\0\0\0"  # by a hash that nobody checks: no time, no path of this machine
    assert b"environment/good.py" in code
    assert str(tmp_path).encode() not in code
    assert "environment/template.py" in files
    assert "environment/__pycache__/template.cpython-311.pyc" not in files


async def test_for_another_python_there_is_no_byte_code(tmp_path: Path, wheels: Path) -> None:
    write_wheel(wheels, "good", "1.0", {"good.py": b"x = 1\n"})
    files = await built(tmp_path, wheels, "good", Target("x86_64", "3.14", "2.28"))
    assert not [path for path in files if path.endswith(".pyc")]


async def test_a_library_whose_code_has_a_name_that_no_module_may_have_is_refused(tmp_path: Path, wheels: Path) -> None:
    write_wheel(wheels, "strange", "1.0", {"strange/a b.py": b""})
    with pytest.raises(Unprocessable, match=r"strange/a b\.py") as refused:
        await built(tmp_path, wheels, "strange")
    assert refused.value.key == "environment-path"


async def test_a_local_version_is_found_by_its_name(tmp_path: Path, wheels: Path) -> None:
    write_wheel(wheels, "local", "1.0+cpu", {"local.py": b""})
    assert "environment/local-1.0_cpu.dist-info/METADATA" in await built(tmp_path, wheels, "local")


async def test_an_environment_that_is_too_large_is_refused(tmp_path: Path, wheels: Path) -> None:
    write_wheel(wheels, "huge", "1.0", {"huge.bin": bytes(2 << 20), "huge.py": b""})
    with pytest.raises(Unprocessable, match=r"at most 1 MiB \(building\.max_mib\)"):
        await built(tmp_path, wheels, "huge", max_mib=1)


async def test_an_architecture_without_wheels_is_refused(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(Unprocessable, match="expected x86_64 or aarch64, got armv7l"):
        await built(tmp_path, wheels, "greeting", Target("armv7l", "3.11", "2.28"))


async def test_an_index_that_does_not_answer_is_no_fault_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    nobody = Resolver(BuildingSettings(index_url="http://127.0.0.1:9/simple", deadline_s=50))
    (tmp_path / "asked").write_text("greeting")
    with pytest.raises(Unavailable, match="environment"):
        await environment(tmp_path / "asked", X86, nobody, tmp_path)


async def test_nothing_asked_for_is_a_lock_without_libraries(tmp_path: Path, wheels: Path) -> None:
    assert set(await built(tmp_path, wheels, "numpy\n")) == {"requirements.lock"}


def test_the_target_is_the_requests_then_the_profiles_then_the_settings(wheels: Path) -> None:
    profile = built_in()["generic-aarch64"]
    assert target_of(profile, "", resolver(wheels)).platform == "aarch64-manylinux_2_28"
    assert target_of(profile, "3.13", resolver(wheels)).python == "3.13"
    assert target_of(profile, "", resolver(wheels, python="3.12")).python == "3.12"


@pytest.mark.parametrize(
    "fields", [{"python": "three"}, {"index_url": "ftp://x"}, {"deadline_s": 0}, {"max_mib": 0}, {"glibc": "new"}]
)
def test_settings_that_mean_nothing_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="building"):
        BuildingSettings(**fields)  # type: ignore[arg-type]
