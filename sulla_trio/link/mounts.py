"""Private mounts that make the guest's name service ours and only ours.

For a process that has just entered its own user and mount namespace (`netns.enter_guest_namespaces`). Nothing here
changes the machine's file system: files are covered, and missing ones appear in a tmpfs over their directory.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from sulla_trio.link import netns

RESOLV_CONF: Final = "/etc/resolv.conf"
NSSWITCH: Final = "/etc/nsswitch.conf"
RESOLVER_DIRECTORIES: Final = ("/run/nscd", "/var/run/nscd", "/run/systemd/resolve")
"""Sockets of caches and resolvers outside, which the C library would ask before it reads resolv.conf."""

_STAGES: Final = ("/mnt", "/tmp", "/run", "/var/tmp", "/media", "/opt", "/srv", "/home")
"""Directories that any system has one of, to put our tmpfs on for a moment."""


def set_up_name_service(nameserver: str) -> None:
    """resolv.conf with `nameserver` alone, nsswitch ``hosts: files dns``, other resolvers' sockets out of reach.

    Raises:
        OSError: the kernel refuses a mount.
    """
    # Resolved first: the link often points into a directory that is covered next.
    resolv_conf, nsswitch = os.path.realpath(RESOLV_CONF), os.path.realpath(NSSWITCH)
    try:
        with open(nsswitch) as file:
            text = file.read()
    except OSError:
        text = ""
    covered = []
    for directory in {os.path.realpath(directory) for directory in RESOLVER_DIRECTORIES}:
        if os.path.isdir(directory):
            _mount_tmpfs(directory)
            covered.append(directory)
    replace_file(resolv_conf, f"nameserver {nameserver}\n", covered)
    replace_file(nsswitch, hosts_by_files_and_dns(text), covered)


def hosts_by_files_and_dns(nsswitch: str) -> str:
    """An nsswitch.conf with its ``hosts`` database replaced, or added."""
    lines = [line for line in nsswitch.splitlines() if line.partition(":")[0].strip() != "hosts"]
    return "\n".join([*lines, "hosts: files dns"]) + "\n"


def replace_file(path: str, content: str, ours: list[str]) -> None:
    """Make the resolved `path` read as `content`. Directories in `ours` are tmpfs of this namespace already.

    Raises:
        OSError: the kernel refuses a mount.
    """
    if os.path.isfile(path):
        stage = _stage_beside(path)
        _mount_tmpfs(stage)
        source = os.path.join(stage, "file")
        _write(source, content)
        netns.mount(source, path, None, netns.MS_BIND)
        netns.detach(stage)
        return
    parent = os.path.dirname(path)
    if not any(os.path.commonpath((parent, directory)) == directory for directory in ours):
        existing = parent
        while not os.path.isdir(existing):
            existing = os.path.dirname(existing)
        if existing == "/":
            # A link to nowhere at all: nothing can be laid over the root, so the link itself is replaced.
            path, existing = RESOLV_CONF if path != NSSWITCH else NSSWITCH, "/etc"
        cover_directory(existing, without=os.path.basename(path) if os.path.dirname(path) == existing else "")
        ours.append(existing)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    _write(path, content)


def cover_directory(directory: str, *, without: str = "") -> None:
    """A writable tmpfs over `directory` in which everything that was there, except the name `without`, is there again.

    Raises:
        OSError: the kernel refuses a mount.
    """
    stage = _stage_beside(directory)
    _mount_tmpfs(stage)
    original = os.path.join(stage, "original")
    os.mkdir(original)
    netns.mount(directory, original, None, netns.MS_BIND | netns.MS_REC)
    mode = stat.S_IMODE(os.stat(directory).st_mode)
    _mount_tmpfs(directory)
    os.chmod(directory, mode)
    for entry in list(os.scandir(original)):
        if entry.name == without:
            continue
        target = os.path.join(directory, entry.name)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
            continue
        if entry.is_dir():
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))
        netns.mount(entry.path, target, None, netns.MS_BIND | netns.MS_REC)
    netns.detach(stage)


def _stage_beside(path: str) -> str:
    """A directory to mount on that is neither `path` nor above or below it."""
    for stage in _STAGES:
        stage = os.path.realpath(stage)
        if os.path.isdir(stage) and os.path.commonpath((stage, path)) not in (stage, path):
            return stage
    raise OSError(2, "no directory to mount a tmpfs on", ", ".join(_STAGES))


def _mount_tmpfs(directory: str) -> None:
    netns.mount("tmpfs", directory, "tmpfs", netns.MS_NOSUID | netns.MS_NODEV, "mode=755,size=1m")


def _write(path: str, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, content.encode())
        os.fchmod(descriptor, 0o644)  # whatever the caller's umask is
    finally:
        os.close(descriptor)
