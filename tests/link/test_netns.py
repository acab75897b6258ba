"""Namespaces: what a refusal says, and (e2e) what is inside."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from sulla_trio.link import netns


@pytest.mark.parametrize(
    ("values", "number", "expected"),
    [
        ({"user.max_user_namespaces": "0"}, errno.ENOSPC, "sysctl user.max_user_namespaces is 0"),
        ({"user.max_net_namespaces": "0"}, errno.ENOSPC, "sysctl user.max_net_namespaces is 0"),
        ({"user.max_user_namespaces": "9"}, errno.ENOSPC, "raise sysctl user.max_user_namespaces (now 9)"),
        ({"kernel.unprivileged_userns_clone": "0"}, errno.EPERM, "`sysctl -w kernel.unprivileged_userns_clone=1`"),
        (
            {"kernel.apparmor_restrict_unprivileged_userns": "1"},
            errno.EACCES,
            "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`",
        ),
        ({"kernel.apparmor_restrict_unprivileged_userns": "0"}, errno.EPERM, "seccomp profile forbids them"),
        ({}, errno.EINVAL, "namespaces cannot be made here (unshare: "),
    ],
)
def test_a_refusal_names_what_forbids_it(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], number: int, expected: str
) -> None:
    monkeypatch.setattr(netns, "_sysctl", lambda name: values.get(name, ""))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    text = netns.explain_refusal(OSError(number, os.strerror(number), "unshare"))
    assert expected in text
    assert "\n" not in text


def test_root_is_not_told_of_what_binds_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "_sysctl", {"kernel.unprivileged_userns_clone": "0"}.get)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "unprivileged_userns_clone" not in netns.explain_refusal(PermissionError(errno.EPERM, "no", "unshare"))


def inside(code: str, uid: int | None = None) -> str:
    """Output of a program, as `uid`."""
    program = "import os, socket\nfrom sulla_trio.link import netns\n" + textwrap.dedent(code)
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
    done = subprocess.run([*user, sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_inside() -> None:
    out = inside("""
        ids = os.getuid(), os.getgid()
        netns.enter_guest_namespaces()
        print([name for _, name in socket.if_nameindex()])
        netns.set_network_sysctls()
        print(open("/proc/sys/net/ipv6/conf/default/disable_ipv6").read().strip())
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
        print(os.getuid(), os.getgid())
        netns.enter_user_namespace(*ids)
        print((os.getuid(), os.getgid()) == ids)
    """)
    assert out == "['lo']\n1\n0 0\nTrue\n"


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0, reason="the identity map is root's")
def test_root_keeps_every_id() -> None:
    out = inside("""
        before = open("/proc/self/uid_map").read().split()
        netns.enter_guest_namespaces()
        print(open("/proc/self/uid_map").read().split() == before)
        os.setgroups([5])
        os.setuid(1234)
        print(os.getuid())
    """)
    assert out == "True\n1234\n"
