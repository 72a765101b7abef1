"""The module set of this device as values: what runs, what shall run, and what lies between. Pure.

Kept in the agent's store, compared by the update engine, read by the keeper and the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from modules.manifest import SamplingPolicy
from modules.targets import CANDIDATES, Mode

PROCESS = "process"  # the kind that workers run, and of every module that was installed before there were others
AGENT = "agent"  # the agent itself
CONTAINER = "container"  # of a manifest only: its worker is one like others, so it is kept and tried as a process


class Installed(msgspec.Struct, frozen=True):
    """One module of a set: which manifest, and what the director wants done with it.

    `sampling` is the director's policy; None leaves the manifest's own. `verified` is true after probation. `kind` is
    that of the manifest (see `kept_as`), known here too, so that a damaged slot does not hide it. `share` and `salt`
    are a candidate's, see `modules.arms`.
    """

    name: str
    version: int
    manifest_sha256: str
    release_counter: int
    deployment: str
    mode: Mode = "serve"
    sampling: SamplingPolicy | None = None
    config: Mapping[str, Any] = {}
    verified: bool = False
    kind: str = PROCESS
    share: float = 1.0
    salt: str = ""

    @property
    def candidate(self) -> bool:
        """Whether it runs beside the version that serves."""
        return self.mode in CANDIDATES

    @property
    def key(self) -> str:
        """What it is kept under on this device: a name may have a version that serves, and a candidate beside it."""
        return key_of(self.name, self.candidate)

    @property
    def proof(self) -> tuple[str, bytes]:
        """What probation is about: these files with this configuration, serving or beside. A change is a new trial."""
        config = msgspec.json.encode(self.config, order="sorted")
        return self.manifest_sha256, config + (b"\0beside" if self.candidate else b"")

    @property
    def serves(self) -> bool:
        """Whether it has a worker."""
        return self.mode != "off"


def key_of(name: str, candidate: bool) -> str:
    """Names of modules have no dot."""
    return f"{name}.candidate" if candidate else name


class ModuleSet(msgspec.Struct, frozen=True):
    """What the director wanted at one version. Applied as a whole, or not at all."""

    director_version: int = 0
    image_version: int = 0
    modules: tuple[Installed, ...] = ()

    def get(self, name: str) -> Installed | None:
        """The version that serves, or is off; not its candidate."""
        return next((module for module in self.modules if module.key == name), None)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(module.manifest_sha256 for module in self.modules)

    @property
    def deployments(self) -> tuple[str, ...]:
        return tuple(sorted({module.deployment for module in self.modules if module.deployment}))


class Changes(msgspec.Struct, frozen=True):
    """From one set to another. `fetch`: manifests that the old set lacks; `trial`: modules whose worker must prove
    itself first; `settled`: neither, so only policies, modes, counters or removals differ; `same`: nothing differs.
    """

    fetch: tuple[Installed, ...]
    trial: tuple[Installed, ...]
    same: bool

    @property
    def settled(self) -> bool:
        return not self.fetch and not self.trial


def changes(current: ModuleSet, target: ModuleSet) -> Changes:
    """What must be done to get from `current` to `target`."""
    held = current.digests
    proven = {module.proof for module in current.modules if module.verified}
    return Changes(
        fetch=tuple(module for module in target.modules if module.manifest_sha256 not in held),
        trial=tuple(m for m in target.modules if m.serves and m.proof not in proven),
        same={_wanted(module) for module in current.modules} == {_wanted(module) for module in target.modules},
    )


def kept_as(kind: str) -> str:
    """The kind under which a module is installed, of the `runtime.kind` of its manifest."""
    return PROCESS if kind == CONTAINER else kind


def of_kind(modules: ModuleSet, kind: str) -> ModuleSet:
    """The set without the modules of other kinds."""
    return msgspec.structs.replace(modules, modules=tuple(m for m in modules.modules if m.kind == kind))


def carry_verified(current: ModuleSet, target: ModuleSet) -> ModuleSet:
    """The target, with what probation has found already kept for modules that stay as they are."""
    known = {module.proof: module.verified for module in current.modules}
    kept = tuple(msgspec.structs.replace(module, verified=known.get(module.proof, False)) for module in target.modules)
    return msgspec.structs.replace(target, modules=kept)


def all_verified(target: ModuleSet) -> ModuleSet:
    """The target after its probation. A module that is off has proven nothing."""
    proven = tuple(msgspec.structs.replace(m, verified=m.verified or m.serves) for m in target.modules)
    return msgspec.structs.replace(target, modules=proven)


def _wanted(module: Installed) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(module, verified=False), order="sorted")
