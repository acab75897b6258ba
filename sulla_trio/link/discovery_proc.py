"""VMs with a vsock device, found in the command lines of a Linux host's processes.

QEMU               ``-device vhost-vsock-pci,guest-cid=N`` (any vhost-vsock device, options or JSON), ``-global``, ``-set``
Firecracker        ``--config-file FILE`` whose ``vsock`` has a ``uds_path``; the oldest, ``--vsock-cid N``
Cloud Hypervisor   ``--vsock cid=N,socket=PATH``

What is configured by a VMM's socket after its start is not on its command line and not found: ``--vm`` names it. Paths are
taken only from processes of our own user or root's: another's could have us write to any socket that we may open.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from sulla_trio.errors import ConfigError
from sulla_trio.link.endpoint_url import MAX_CID, EndpointUrl, parse_endpoint

MAX_TEXT: Final = 1 << 20
"""Bytes of a command line or a configuration file: the kernel allows 2 MiB of arguments, QEMU's longest are a tenth."""
FIRST_GUEST_CID: Final = 3
"""Below are the hypervisor, loopback and the host (vsock(7))."""

_DRIVER: Final = re.compile(r"vhost-vsock(-\w+)+")
_GLOBAL: Final = re.compile(r"vhost-vsock[\w-]*\.guest-cid=(\w+)")
_SET: Final = re.compile(r"device\.[^.]+\.guest-cid=(\w+)")


class _Process(NamedTuple):
    directory: str
    trusted: bool
    """Whether what it calls a path is one for us to read or to connect to."""


def running_vms(proc: str, port: int) -> list[EndpointUrl]:
    """The vsock port `port` of every VM that a process under `proc` runs, in the order of process numbers.

    Never raises: a process may end while it is looked at, and other users' files may be closed to us.
    """
    found: dict[EndpointUrl, None] = {}
    try:
        numbers = sorted(int(name) for name in os.listdir(proc) if name.isdecimal())
    except OSError:
        return []
    trusted = {0, _owner(f"{proc}/self")}
    for number in numbers:
        directory = f"{proc}/{number}"
        arguments = [os.fsdecode(word) for word in _read(f"{directory}/cmdline").split(b"\0")]
        process = _Process(directory, _owner(directory) in trusted)
        for place in _places(process, arguments):
            try:
                found[parse_endpoint(f"{place}:{port}")] = None
            except ConfigError:
                pass  # a path that no URL can name
    return list(found)


def _owner(directory: str) -> int | None:
    try:
        return os.stat(directory).st_uid
    except OSError:
        return None


def _places(process: _Process, arguments: list[str]) -> Iterator[str]:
    """Endpoint URLs without their port."""
    program = os.path.basename(arguments[0])
    read = _VMMS.get(next((name for name in _VMMS if program.startswith(name)), ""), _qemu)
    for option, value in _options(arguments):
        yield from read(process, option, value)


def _options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """(name without dashes, value) of ``-o V``, ``--o V`` and ``--o=V``. Values that follow no option are passed over."""
    for at, word in enumerate(arguments):
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            if not equals and at + 1 < len(arguments):
                value = arguments[at + 1]
            yield name, value


def _qemu(process: _Process, option: str, value: str) -> Iterator[str]:
    cid: object = None
    match option:
        case "device" if value.lstrip().startswith("{"):
            device = _json_object(value)
            if _DRIVER.fullmatch(str(device.get("driver"))):
                cid = device.get("guest-cid")
        case "device":
            driver, _, rest = value.partition(",")
            if _DRIVER.fullmatch(driver.removeprefix("driver=")):
                cid = _suboptions(rest).get("guest-cid")
        case "global" if found := _GLOBAL.fullmatch(value):
            cid = found[1]
        case "set" if found := _SET.fullmatch(value):
            cid = found[1]
    yield from _vsock(cid)


def _firecracker(process: _Process, option: str, value: str) -> Iterator[str]:
    if option == "vsock-cid":
        yield from _vsock(value)
    elif option == "config-file":
        text = _read(_outside(process, value) or "").decode(errors="replace")
        vsock = _json_object(text).get("vsock")
        path = vsock.get("uds_path") if isinstance(vsock, dict) else None
        if isinstance(path, str):
            yield from _hybrid(process, path)


def _cloud_hypervisor(process: _Process, option: str, value: str) -> Iterator[str]:
    if option == "vsock":
        yield from _hybrid(process, _suboptions(value).get("socket", ""))


_VMMS: Final[dict[str, Callable[[_Process, str, str], Iterator[str]]]] = {
    "firecracker": _firecracker,
    "cloud-hypervisor": _cloud_hypervisor,
}


def _vsock(cid: object) -> Iterator[str]:
    """QEMU takes decimal, hexadecimal and octal numbers, and strings of them in JSON."""
    text = str(cid)
    try:
        number = int(text, 8 if re.fullmatch("0[0-7]+", text) else 0)
    except ValueError:
        return
    if FIRST_GUEST_CID <= number <= MAX_CID:
        yield f"vsock://{number}"


def _hybrid(process: _Process, path: str) -> Iterator[str]:
    if outside := _outside(process, path):
        yield f"vsock+unix://{outside}"


def _outside(process: _Process, path: str) -> str | None:
    """`path` as `process` names it, from where we are: below its working directory, in its root."""
    if not process.trusted or not path or "\0" in path:
        return None
    try:
        root = os.readlink(f"{process.directory}/root").rstrip("/")
        start = os.readlink(f"{process.directory}/cwd")  # the kernel tells it from our root
    except OSError:
        return None
    return os.path.normpath(root + path if path.startswith("/") else os.path.join(start, path))


def _suboptions(text: str) -> dict[str, str]:
    """``a=1,b=2``; a comma in a value is written twice."""
    words = (word.replace("\0", ",").partition("=") for word in text.replace(",,", "\0").split(","))
    return {name: value for name, _, value in words}


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: str) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block, a device may do anything
            return b""
        with open(path, "rb") as file:
            return file.read(MAX_TEXT)
    except OSError:
        return b""
