"""Which VMs may be ours: the handshake endpoint of each candidate, for the host's side of the handshake to probe.

Source: specs/daemons.md sections 1.3 and 1.6. The Windows host reads the registry, a Linux one its processes' command lines
(`discovery_proc`), and ``--vm URL`` replaces both. A look takes milliseconds, so it is taken every second, not once: at
first boot the VM may not be there yet.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, cast

from sulla_trio.errors import ConfigError
from sulla_trio.link.discovery_proc import running_vms
from sulla_trio.link.endpoint_url import EndpointUrl, guid, parse_endpoint

log = logging.getLogger(__name__)

COMPUTE_SYSTEMS: Final = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\HostComputeService\VolatileStore\ComputeSystem"
"""Its sub-keys are named for the running compute systems; it exists only while there are some."""
MAX_CANDIDATES: Final = 1024
"""Each is probed by a task every second; more is no machine that runs WSL."""


class NoCandidates(ConfigError):
    """There is no VM to probe now. To wait and look again is as good as to give up, which is what the Go daemon does."""


class Candidates(Protocol):
    """A way to find VMs."""

    def find(self) -> list[EndpointUrl]:
        """The handshake endpoint of every VM that may be ours, at least one, each once.

        Raises:
            NoCandidates: there is none; the text says why.
        """


class FixedCandidates:
    """The VMs that the command line names."""

    def __init__(self, urls: Sequence[str], port: int) -> None:
        """`port` is the dialect's, for URLs that leave theirs out.

        Raises:
            ConfigError: a URL that does not parse, or that cannot be dialled again and again.
        """
        self._urls = list(dict.fromkeys(parse_endpoint(url, port) for url in urls))
        for url in self._urls:
            if url.scheme == "fd" or (url.scheme, url.host) == ("vsock", "ANY"):
                raise ConfigError(f"{url.text} is no VM that can be probed: name its CID, GUID, path or address")

    def find(self) -> list[EndpointUrl]:
        if not self._urls:
            raise NoCandidates("no VM is named")
        return list(self._urls)


class ProcCandidates:
    """Every VM with a vsock device that a process of this Linux host runs."""

    def __init__(self, port: int, proc: str = "/proc") -> None:
        self._port = port
        self._proc = proc

    def find(self) -> list[EndpointUrl]:
        found = running_vms(self._proc, self._port)[:MAX_CANDIDATES]
        if not found:
            raise NoCandidates("no running VM found: no process has a vsock device; name the VM with --vm URL")
        return found


class Registry(Protocol):
    """What of `winreg` is used; it exists only on Windows."""

    HKEY_LOCAL_MACHINE: int

    def OpenKey(self, key: int, sub_key: str, /) -> contextlib.AbstractContextManager[object]: ...

    def EnumKey(self, key: object, index: int, /) -> str: ...


class RegistryCandidates:
    """Every running compute system of Hyper-V: all WSL distributions share one."""

    def __init__(self, port: int, registry: Registry) -> None:
        self._port = port
        self._registry = registry
        self._told: set[str] = set()

    def find(self) -> list[EndpointUrl]:
        registry = self._registry
        try:
            with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, COMPUTE_SYSTEMS) as key:
                names = list(self._names(key))
        except OSError as error:
            reason = error.strerror or error
            raise NoCandidates(f"could not open registry key, is WSL VM running? {reason}") from None
        invalid = {name for name in names if not self._is_guid(name)}
        for name in sorted(invalid - self._told):
            log.error("invalid VM name: %s", name)
        self._told = invalid
        found = dict.fromkeys(
            parse_endpoint(f"hyperv://{guid(name)}:{self._port}") for name in names if name not in invalid
        )
        if not found:
            raise NoCandidates("no running WSL VM found")
        return list(found)

    def _names(self, key: object) -> Iterator[str]:
        with contextlib.suppress(OSError):  # how EnumKey says that there are no more
            for index in range(MAX_CANDIDATES):
                yield self._registry.EnumKey(key, index)

    @staticmethod
    def _is_guid(name: str) -> bool:
        try:
            guid(name)
        except ValueError:
            return False
        return True


class Undiscoverable:
    """A host whose VMs do not show themselves."""

    def __init__(self, platform: str) -> None:
        self._platform = platform

    def find(self) -> list[EndpointUrl]:
        raise NoCandidates(f"VMs cannot be found on {self._platform}: name one with --vm URL")


def default_candidates(platform: str, port: int) -> Candidates:
    """How VMs are found on `platform` (a `sys.platform`) when the command line names none; `port` is the dialect's."""
    match platform:
        case "win32":
            return RegistryCandidates(port, cast(Registry, importlib.import_module("winreg")))
        case "linux":
            return ProcCandidates(port)
        case _:
            return Undiscoverable(platform)
