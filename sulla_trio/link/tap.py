"""The guest's network interface: a tap by raw ioctls, and frames between it and a batch.

A tap's descriptor keeps working whatever namespace its holder is in; the interface lives in the network namespace it was
made in, and goes with the last descriptor (it is never persistent). Source: specs/daemons.md sections 3.4 and 11;
linux/if_tun.h, linux/sockios.h, netdevice(7).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import subprocess
from typing import Final

from sulla_trio.errors import ConfigError

DEVICE: Final = "/dev/net/tun"
MODULE: Final = "tun"
MODPROBE_TIMEOUT: Final = 5.0
"""Seconds: it takes some milliseconds, and nobody is to wait for one that hangs."""
_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"
"""Searched behind PATH, which often lacks them where the daemons are started."""
_NO_DEVICE: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})

TUNSETIFF: Final = 0x400454CA
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
SIOCGIFADDR: Final = 0x8915
SIOCSIFMTU: Final = 0x8922
SIOCSIFHWADDR: Final = 0x8924
SIOCGIFHWADDR: Final = 0x8927
IFF_UP: Final = 0x1
ARPHRD_ETHER: Final = 1
MAX_NAME: Final = 15  # IFNAMSIZ less the zero

_IFREQ_FLAGS: Final = struct.Struct("16sh22x")
_IFREQ_INT: Final = struct.Struct("16si20x")
_IFREQ_HWADDR: Final = struct.Struct("16sH6s16x")


def check_device() -> None:
    """See that this user may open the tun device; load its module where that is missing.

    Raises:
        ConfigError: it is missing or forbidden; the text names it, its mode and the way out.
    """
    if is_missing():
        load_module()
    os.close(_open_device())


def is_missing() -> bool:
    """Whether there is no tun device, so that `load_module` may help (WSL 2.5.4 does not load the module by itself)."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in _NO_DEVICE
    return False


def load_module() -> None:
    """Try ``modprobe tun``, once and for MODPROBE_TIMEOUT at most; nothing where we are not root. It blocks.

    Raises:
        ConfigError: it was tried and did not help; the text has modprobe's own words.
    """
    if os.geteuid():
        return
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"}
    try:
        done = subprocess.run(
            ("modprobe", MODULE),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=MODPROBE_TIMEOUT,
            check=False,
        )
        said = done.stderr.decode("utf-8", "replace").split("\n")[0] or f"modprobe ended with status {done.returncode}"
    except subprocess.TimeoutExpired:
        said = f"modprobe did not end within {MODPROBE_TIMEOUT:.0f} s"
    except OSError as error:
        said = f"modprobe cannot be started: {(error.strerror or str(error)).lower()}"
    if is_missing():
        raise ConfigError(
            f"{DEVICE} is missing and `modprobe {MODULE}` did not help ({said}): "
            f"load it in this machine's kernel, or give the container the device"
        )


def _open_device() -> int:
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NO_DEVICE:
            raise ConfigError(
                f"{DEVICE} is missing ({error.strerror}): load the module with `modprobe tun`, or give the container the device"
            ) from None
        try:
            mode = f"mode {stat.S_IMODE(os.stat(DEVICE).st_mode):04o}"
        except OSError:
            mode = "unreadable"
        raise ConfigError(
            f"{DEVICE} is {mode} and cannot be opened ({error.strerror}): as root, `chmod 0666 {DEVICE}` (the usual mode)"
        ) from None


def open_tap(name: str, mac: bytes | None, mtu: int | None = None) -> int:
    """Descriptor (non-blocking, close-on-exec) of a new tap `name`, up, with `mac` and `mtu` where given.

    Raises:
        ConfigError: the name is bad or taken, the device missing or forbidden, or the kernel refuses; one line.
    """
    if (
        not name
        or len(name.encode()) > MAX_NAME
        or "/" in name
        or name in (".", "..")
        or any(c.isspace() for c in name)
    ):
        raise ConfigError(f"invalid tap interface name: {name!r}")
    try:
        socket.if_nametoindex(name)
    except OSError:
        pass
    else:
        raise ConfigError(f"{name} interface already exist, exiting now")
    descriptor = _open_device()
    step = "creating tap device"
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, _IFREQ_FLAGS.pack(name.encode(), IFF_TAP | IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            if mac is not None:
                step = "setting the MAC address of"
                fcntl.ioctl(control, SIOCSIFHWADDR, _IFREQ_HWADDR.pack(name.encode(), ARPHRD_ETHER, mac))
            if mtu is not None:
                step = f"setting MTU {mtu} of"
                fcntl.ioctl(control, SIOCSIFMTU, _IFREQ_INT.pack(name.encode(), mtu))
            step = "bringing up"
            _set_up(control, name)
    except OSError as error:
        os.close(descriptor)
        hint = " (it needs CAP_NET_ADMIN in this network namespace)" if error.errno == errno.EPERM else ""
        raise ConfigError(f"{step} {name} failed: {(error.strerror or str(error)).lower()}{hint}") from None
    return descriptor


def hardware_address(name: str) -> bytes:
    """The MAC of interface `name`. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, SIOCGIFHWADDR, _IFREQ_HWADDR.pack(name.encode(), 0, bytes(6)))
    mac: bytes = _IFREQ_HWADDR.unpack(answer)[2]
    return mac


def has_address(name: str) -> bool:
    """Whether interface `name` has an IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, SIOCGIFADDR, _IFREQ_HWADDR.pack(name.encode(), socket.AF_INET, bytes(6)))
        except OSError:
            return False
    return True


def bring_up_loopback() -> None:
    """`lo` up in this network namespace.

    Raises:
        ConfigError: the kernel refuses.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            _set_up(control, "lo")
    except OSError as error:
        raise ConfigError(f"bringing up lo failed: {(error.strerror or str(error)).lower()}") from None


def _set_up(control: socket.socket, name: str) -> None:
    request = _IFREQ_FLAGS.pack(name.encode(), 0)
    flags: int = _IFREQ_FLAGS.unpack(fcntl.ioctl(control, SIOCGIFFLAGS, request))[1]
    fcntl.ioctl(control, SIOCSIFFLAGS, _IFREQ_FLAGS.pack(name.encode(), flags | IFF_UP))
