"""Where a host API is: the runtime directory, its socket files and api files, and which of them answer.

Source: DESIGN section 5. Reading the environment is the command line's business: it is an argument here.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sulla_trio.errors import ConfigError

PROBE_TIMEOUT = 1.0
"""Seconds for a local socket to accept; only a full backlog takes longer than microseconds."""


@dataclass(frozen=True, slots=True)
class ApiLocation:
    """One host API: its endpoint URL, and the token where it is a TCP one."""

    url: str
    token: str | None = field(default=None, repr=False)


def runtime_directory() -> Path:
    """The per-user directory of sockets and api files; it need not exist.

    Raises:
        ConfigError: none is safe: without XDG_RUNTIME_DIR it would be below a directory that is another user's.
    """
    import warnings

    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without XDG_RUNTIME_DIR it is a directory of /tmp: see `make_private`
        try:
            return Path(platformdirs.user_runtime_dir("sulla", appauthor=False))
        except OSError as error:
            raise ConfigError(str(error)) from None


def make_private(directory: Path) -> None:
    """Make `directory` for its owner alone, if it does not exist.

    Raises:
        ConfigError: it is somebody else's, or others may write there: who does could put their socket in place of ours.
        OSError: it cannot be made.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not is_private(directory):
        raise ConfigError(f"{directory} is not yours alone; remove it, or set XDG_RUNTIME_DIR")


def is_private(directory: Path) -> bool:
    """Whether only this user can put files into `directory` (always so on Windows, where it is in the user's profile)."""
    try:
        status = directory.stat(follow_symlinks=False)
    except OSError:
        return False
    return os.name != "posix" or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def default_listen(pid: int | None = None, directory: Path | None = None) -> str:
    """Endpoint URL of the host API of a host-switch run by hand, or (with `pid`) by ``sulla run``."""
    name = "host-switch.sock" if pid is None else f"host-switch-{pid}.sock"
    return f"unix://{(directory or runtime_directory()) / name}"


def parse_location(text: str, name: str, token: str | None = None) -> ApiLocation:
    """A URL that a person gave as `name` (``--api`` or ``SULLA_API``).

    Raises:
        ConfigError: neither ``unix:///path`` nor ``tcp://host:port``.
    """
    parts = urlsplit(text)
    try:
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            return ApiLocation(text, None)
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            return ApiLocation(text, token)
    except ValueError:
        pass
    raise ConfigError(f"{name}: {text} is not an API address; want unix:///path/to/host-switch.sock or tcp://host:port")


def find_api(given: str | None, environment: Mapping[str, str], directory: Path | None = None) -> ApiLocation:
    """The API to talk to: `given`, else ``SULLA_API``, else the only one alive in the runtime directory.

    A TCP address without ``SULLA_API_TOKEN`` gets its token from the api files.

    Raises:
        ConfigError: none, or several (they are listed).
    """
    directory = directory or runtime_directory()
    token = environment.get("SULLA_API_TOKEN")
    if given:
        return _with_token(parse_location(given, "--api", token), directory)
    if environment.get("SULLA_API"):
        return _with_token(parse_location(environment["SULLA_API"], "SULLA_API", token), directory)
    alive = [location for location in _advertised(directory) if _answers(location)]
    if len(alive) == 1:
        return alive[0]
    if not alive:
        raise ConfigError(
            f"no host-switch is running (looked in {directory}); start one, or name its API with --api URL or SULLA_API"
        )
    listed = "\n".join(f"  {location.url}" for location in alive)
    raise ConfigError(f"{len(alive)} host-switches are running; choose one with --api URL or SULLA_API:\n{listed}")


def _advertised(directory: Path) -> list[ApiLocation]:
    if not is_private(directory):
        return []
    sockets = [ApiLocation(f"unix://{path}") for path in sorted(directory.glob("host-switch*.sock"))]
    return sockets + [location for _, location in _api_files(directory)]


def _api_files(directory: Path) -> list[tuple[Path, ApiLocation]]:
    found = []
    for path in sorted(directory.glob("api*.json")):
        try:
            content = json.loads(path.read_text())
            found.append((path, ApiLocation(str(content["url"]), str(content["token"]))))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half written, or not ours
    return found


def sweep(directory: Path) -> None:
    """Remove what processes that were killed left in `directory`: sockets and api files of a dead pid that answer nobody."""
    left = [ApiLocation(f"unix://{path}") for path in directory.glob("host-switch-*.sock")]
    paths = {location: Path(urlsplit(location.url).path) for location in left}
    paths |= {location: path for path, location in _api_files(directory)}
    for location, path in paths.items():
        pid = re.fullmatch(r"(?:host-switch|api)-([0-9]{1,9})[-.].*", path.name)
        if pid and not _is_alive(int(pid[1])) and not _answers(location):
            path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there a signal of 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _with_token(location: ApiLocation, directory: Path) -> ApiLocation:
    if location.token is None and location.url.startswith("tcp:"):
        for _, known in _api_files(directory):
            if known.url == location.url:
                return known
    return location


def _answers(location: ApiLocation) -> bool:
    parts = urlsplit(location.url)
    try:
        if parts.scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(PROBE_TIMEOUT)
                probe.connect(parts.path)
                return True
        with socket.create_connection((parts.hostname, parts.port), PROBE_TIMEOUT):
            return True
    except (OSError, ValueError, TypeError):
        return False
