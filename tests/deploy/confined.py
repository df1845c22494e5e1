"""Runs a command with the system calls that a unit leaves it: `python -m tests.deploy.confined UNIT COMMAND ...`.

What SystemCallFilter, MemoryDenyWriteExecute and RestrictAddressFamilies of the unit say is put into effect by
libseccomp, as systemd does; all else of the unit is not.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_MASKED_EQUAL, _EQUAL = 7, 4
_WRITE_EXECUTE, _EXECUTE = 6, 4
_FAMILIES = {name: int(value) for name, value in vars(socket).items() if name.startswith("AF_")}


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


_library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
_library.seccomp_init.restype = ctypes.c_void_p
_library.seccomp_load.argtypes = [ctypes.c_void_p]
_library.seccomp_rule_add_array.argtypes = [
    ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Compare),
]  # fmt: skip


class _Filter:
    def __init__(self, otherwise: int) -> None:
        self._context = _library.seccomp_init(ctypes.c_uint32(otherwise))

    def rule(self, action: int, name: str, *comparisons: tuple[int, int, int, int]) -> None:
        number = _library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # not of this architecture
            return
        made = (_Compare * len(comparisons))(*(_Compare(*each) for each in comparisons))
        status = _library.seccomp_rule_add_array(self._context, action, number, len(comparisons), made)
        assert status == 0, (name, status)

    def load(self) -> None:
        status = _library.seccomp_load(self._context)
        assert status == 0, os.strerror(-status)


def calls_of(group: str) -> set[str]:
    """The system calls of a group, as systemd knows it."""
    told = subprocess.run(
        ["systemd-analyze", "--no-pager", "syscall-filter", group], capture_output=True, text=True, check=True
    ).stdout
    found: set[str] = set()
    for line in told.splitlines()[1:]:
        name = line.strip()
        if name.startswith("@"):
            found |= calls_of(name)
        elif name and not name.startswith("#"):
            found.add(name)
    return found


def confine(unit: str) -> None:
    """This process, from now on."""
    allowed: set[str] = set()
    families: list[int] = []
    no_new_code = False
    for line in unit.splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            for group in value.lstrip("~").split():
                allowed = allowed - calls_of(group) if value.startswith("~") else allowed | calls_of(group)
        elif key == "RestrictAddressFamilies":
            families = [_FAMILIES[name] for name in value.split()]
        elif key == "MemoryDenyWriteExecute":
            no_new_code = value == "yes"
    assert allowed and families and no_new_code
    arguments = _Filter(_ALLOW)
    arguments.rule(_REFUSE, "mmap", (2, _MASKED_EQUAL, _WRITE_EXECUTE, _WRITE_EXECUTE))
    arguments.rule(_REFUSE, "mprotect", (2, _MASKED_EQUAL, _EXECUTE, _EXECUTE))
    for family in set(_FAMILIES.values()) - set(families):
        if family >= 0:
            arguments.rule(_REFUSE, "socket", (0, _EQUAL, family, 0))
    arguments.load()
    calls = _Filter(_REFUSE)
    for name in sorted(allowed):
        calls.rule(_ALLOW, name)
    calls.load()


def main() -> None:
    """Does not return."""
    unit, *command = sys.argv[1:]
    confine(Path(unit).read_text())
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
