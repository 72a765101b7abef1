"""Landlock by system call: a process gives up the file system, TCP and signals but for what it names.

The kernel's interface only; which paths a worker may read is `confine`'s decision.
Source: linux/landlock.h, kernel documentation userspace-api/landlock (ABI 1 to 7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_CREATE_VERSION = 1
_RULE_PATH_BENEATH = 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_FILE = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _DEVICE_IOCTL = 1 << 13, 1 << 14, 1 << 15
# In a folder of its own: plain files and folders; no links, sockets, devices or programs.
_OWN_FOLDER = (
    _WRITE_FILE | _READ_FILE | _READ_DIR | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_FILE | _REFER | _TRUNCATE
)
_DEVICE = _WRITE_FILE | _READ_FILE | _DEVICE_IOCTL
_ACCESS_BY_ABI = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}  # all; refer; truncate; device ioctl
_NET_ABI, _NET_ALL = 4, 0b11  # TCP bind, TCP connect
_SCOPE_ABI, _SCOPE_ALL = 6, 0b11  # abstract Unix sockets, signals


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """The version that the running kernel speaks; 0 when it has none."""
    version = _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_VERSION))
    return max(0, version)


def open_rules(readable: Iterable[Path], writable: Iterable[Path] = (), devices: Iterable[Path] = ()) -> int:
    """A ruleset (file descriptor) that allows reading beneath these paths, writing plain files beneath the `writable`,
    and all that a driver understands to the `devices`; those that do not exist are left out. Raises OSError.
    """
    version = abi()
    handled = sum(bits for since, bits in _ACCESS_BY_ABI.items() if version >= since)
    rules = _Ruleset(handled, _NET_ALL if version >= _NET_ABI else 0, _SCOPE_ALL if version >= _SCOPE_ABI else 0)
    size = 24 if version >= _SCOPE_ABI else 16 if version >= _NET_ABI else 8
    ruleset = _checked(_call(_CREATE, ctypes.byref(rules), ctypes.c_size_t(size), ctypes.c_uint32(0)), "create")
    for paths, access in ((readable, _READ_FILE | _READ_DIR), (writable, _OWN_FOLDER), (devices, _DEVICE)):
        for path in paths:
            _allow(ruleset, path, access & handled)
    return ruleset


def restrict(ruleset: int) -> None:
    """Applies the ruleset to this thread and all it will start. Needs no_new_privs. Raises OSError."""
    _checked(_call(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)), "restrict")
    os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(parent).st_mode):
            access &= _READ_FILE | _WRITE_FILE | _TRUNCATE | _DEVICE_IOCTL
        rule = _PathBeneath(access, parent)
        added = _call(_ADD_RULE, ctypes.c_int(ruleset), _RULE_PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0))
        _checked(added, f"allow {path}")
    finally:
        os.close(parent)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    return result


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock {what}: {errno.errorcode.get(code, code)}")
    return result
