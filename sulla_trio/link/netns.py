"""Namespaces for a guest on this machine, by ctypes: what `sulla run`'s launcher and init need and nothing that costs time.

Only for single-threaded processes without trio: unshare acts on the calling thread, and every other thread and its
children would stay behind. (`os.unshare` exists from Python 3.12 on.) Source: user_namespaces(7), pid_namespaces(7), mount(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

from sulla_trio.errors import ConfigError
from sulla_trio.link.process import libc_call

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

_PING_GROUPS: Final = ("0 2147483647", "0 0")
"""Every group where the user namespace maps them all, else the only one it has."""


def unshare(flags: int) -> None:
    """unshare(2). Raises OSError."""
    libc_call("unshare", ctypes.c_int(flags))


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2). Raises OSError."""
    encoded = [os.fsencode(text) if text is not None else None for text in (source, target, kind)]
    libc_call("mount", *encoded, ctypes.c_ulong(flags), data.encode() if data is not None else None)


def detach(target: str) -> None:
    """umount2(2) with MNT_DETACH. Raises OSError."""
    libc_call("umount2", os.fsencode(target), ctypes.c_int(MNT_DETACH))


def enter_guest_namespaces() -> None:
    """Move this process to a new user, network and mount namespace, where it is uid 0 with every capability.

    A caller that is root keeps every id it has (the identity map, written by a child that stays outside); another one has
    its own uid and gid only, as 0. Mounts no longer propagate either way.

    Raises:
        ConfigError: the kernel forbids it; one line that names the sysctl where one is the reason.
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        if uid:
            unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS)
            map_ids(0, uid, 0, gid)
        else:
            _enter_as_root()
        mount("none", "/", None, MS_REC | MS_PRIVATE)
    except OSError as error:
        raise ConfigError(explain_refusal(error)) from None


def enter_user_namespace(uid: int, gid: int) -> None:
    """Move this process, uid 0 of its user namespace, to a nested one where it is `uid` and `gid`.

    After the next exec it has no capability there and none over what the outer one owns. Raises OSError.
    """
    unshare(CLONE_NEWUSER)
    map_ids(uid, 0, gid, 0)


def map_ids(uid: int, outer_uid: int, gid: int, outer_gid: int) -> None:
    """Give this process's new user namespace one uid and one gid. Raises OSError."""
    _write("/proc/self/setgroups", "deny")  # user_namespaces(7): without it an unprivileged gid_map is refused
    _write("/proc/self/uid_map", f"{uid} {outer_uid} 1\n")
    _write("/proc/self/gid_map", f"{gid} {outer_gid} 1\n")


def _enter_as_root() -> None:
    """As root: a child that stays outside writes the maps, because only a process there may map more than its own ids."""
    maps = {name: _identity_map(f"/proc/self/{name}") for name in ("uid_map", "gid_map")}
    ready_read, ready_write = os.pipe()
    target = os.getpid()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(ready_write)
            if os.read(ready_read, 1):
                for name, text in maps.items():
                    _write(f"/proc/{target}/{name}", text)
                status = 0
        finally:
            os._exit(status)
    os.close(ready_read)
    try:
        unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS)
        os.write(ready_write, b"x")
    finally:
        os.close(ready_write)
        _, status = os.waitpid(child, 0)
    if status:  # root of a container without CAP_SETUID
        map_ids(0, 0, 0, 0)


def _identity_map(path: str) -> str:
    """Every id that `path` maps in this user namespace, mapped to itself."""
    with open(path) as file:
        rows = [line.split() for line in file]
    return "".join(f"{first} {first} {count}\n" for first, _, count in rows)


def set_network_sysctls() -> None:
    """In the new network namespace: ping without privileges, no IPv6 on interfaces made from now on.

    Best effort: a container may have /proc/sys read-only, and what CMD then misses is a ping as non-root.
    """
    for groups in _PING_GROUPS:
        try:
            _write("/proc/sys/net/ipv4/ping_group_range", groups)
            break
        except OSError:
            continue
    try:
        _write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
    except OSError:
        pass


def explain_refusal(error: OSError) -> str:
    """One line for why namespaces cannot be had here, naming the sysctl that forbids them."""
    limits = (
        "user.max_user_namespaces",
        "user.max_net_namespaces",
        "user.max_mnt_namespaces",
        "user.max_pid_namespaces",
    )
    for name in limits:
        if _sysctl(name) == "0":
            return f"namespaces are switched off here: sysctl {name} is 0; as root, `sysctl -w {name}=15000`"
    if error.errno == errno.ENOSPC:
        return f"a namespace limit is reached ({error.strerror}): raise sysctl {limits[0]} (now {_sysctl(limits[0])})"
    if os.geteuid() and error.errno in (errno.EPERM, errno.EACCES):
        for name, refusing, granting in (
            ("kernel.unprivileged_userns_clone", "0", "1"),
            ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ):
            if _sysctl(name) == refusing:
                return (
                    f"user namespaces are forbidden to this user: sysctl {name} is {refusing}; as root, "
                    f"`sysctl -w {name}={granting}`, or run sulla as root"
                )
    call = f"{error.filename}: " if error.filename else ""
    return (
        f"namespaces cannot be made here ({call}{error.strerror}): the kernel or a container's seccomp profile forbids them "
        f"(user.max_user_namespaces is {_sysctl(limits[0]) or 'absent'})"
    )


def _sysctl(name: str) -> str:
    try:
        with open("/proc/sys/" + name.replace(".", "/")) as file:
            return file.read().strip()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
