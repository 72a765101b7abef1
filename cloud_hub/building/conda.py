"""A conda file as requirements: what stands under `pip:`, and conda's own packages where the name means the same.

Conda's packages are other builds than an index's wheels, sometimes of other things under the same name. So only those
are taken over of which it is known; the rest is refused by name. Pure; called by `building.requirements`.
Source: conda's environment.yml and its match specifications (name, version, build).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from cloud_hub.errors import Unprocessable

# Those whose conda package and wheel are the same library in the same versions: conda's name -> the index's.
_SAME = (
    "absl-py", "aiohttp", "attrs", "beautifulsoup4", "bottleneck", "cachetools", "certifi", "cffi",
    "charset-normalizer", "click", "cloudpickle", "colorama", "coloredlogs", "cryptography", "cython", "dill",
    "einops", "filelock", "flatbuffers", "fsspec", "gensim", "h5py", "huggingface_hub", "imageio", "joblib",
    "jsonschema", "lightgbm", "llvmlite", "lxml", "matplotlib", "networkx", "nltk", "numba", "numexpr", "numpy",
    "onnx", "onnxruntime", "openpyxl", "packaging", "pandas", "patsy", "pillow", "plotly", "protobuf", "psutil",
    "pyarrow", "pydantic", "pyparsing", "python-dateutil", "pytz", "pywavelets", "pyyaml", "regex", "requests",
    "rich", "ruamel.yaml", "safetensors", "scikit-image", "scikit-learn", "scipy", "seaborn", "sentencepiece",
    "shapely", "simplejson", "six", "spacy", "sqlalchemy", "statsmodels", "sympy", "tabulate", "tokenizers",
    "toolz", "tqdm", "transformers", "typing_extensions", "tzdata", "ujson", "urllib3", "wrapt", "xgboost",
    "xxhash", "zstandard",
)  # fmt: skip
_PACKAGES = {
    **{name: name for name in _SAME},
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "py-xgboost": "xgboost",
}
_TOOLS = frozenset({"pip", "setuptools", "wheel"})  # of an environment that is made; ours is resolved beforehand
_SPEC = re.compile(r"^(?:[\w.-]+::)?(?P<name>[A-Za-z0-9_.-]+)\s*(?P<version>[<>=!~][^\s]*(?:\s*,\s*[<>=!~][^\s]*)*)?$")


def is_conda(text: str) -> bool:
    """A requirement list is no mapping in YAML."""
    return re.search(r"^dependencies\s*:", text, re.MULTILINE) is not None


def conda_lines(text: str, python: str) -> Iterator[str]:
    """PEP 508 requirements. Raises Unprocessable `environment-invalid`, naming the package."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise _refused(f"expected YAML: {str(error).partition(chr(10))[0][:200]}") from error
    listed = found.get("dependencies") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise _refused("expected a list of dependencies")
    for item in listed:
        if isinstance(item, str):
            yield from _package(item.strip(), python)
        elif isinstance(item, dict) and set(item) == {"pip"} and isinstance(item["pip"], list):
            yield from (str(line).strip() for line in item["pip"])
        else:
            raise _refused(f"expected a package or a list under pip, got {str(item)[:120]!r}")


def _package(spec: str, python: str) -> Iterator[str]:
    match = _SPEC.match(spec)
    if match is None:
        raise _refused(f"expected NAME or NAME=VERSION, got {spec[:120]!r}")
    name, version = match["name"].lower(), _version(spec, (match["version"] or "").replace(" ", ""))
    if name == "python":
        _check_python(version, python)
    elif name in _PACKAGES:
        yield _PACKAGES[name] + version
    elif name not in _TOOLS:
        raise _refused(f"{name}: no wheel is known to be the same as this conda package; name one under pip instead")


def _version(spec: str, version: str) -> str:
    """Conda's one `=` means: begins with."""
    if "|" in version or re.match(r"^==?[^=<>!~,]+=", version):
        raise _refused(f"{spec[:120]}: expected a version without a build and without alternatives; put it under pip")
    if re.match(r"^=[^=]", version):
        return f"=={version[1:].removesuffix('.*').removesuffix('*').rstrip('.')}.*"
    return version


def _check_python(version: str, python: str) -> None:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        fits = not version or _any_patch(SpecifierSet(version), python)
    except InvalidSpecifier as error:
        raise _refused(f"python{version}: {error}") from error
    if not fits:
        raise _refused(
            f"python{version}: the devices have {python}, which a module cannot change; drop the line, or say which "
            "version they have (--python)"
        )


def _any_patch(wanted: object, python: str) -> bool:
    """Whether some 3.11.x fits."""
    return any(f"{python}.{patch}" in wanted for patch in range(30))  # type: ignore[operator]


def _refused(text: str) -> Unprocessable:
    return Unprocessable("environment-invalid", f"conda file: {text}; nothing was built")
