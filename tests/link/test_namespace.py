"""Network namespaces from a process that runs trio and stays where it is."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest
import trio

from sulla_trio.link import namespace

pytestmark = pytest.mark.e2e


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


async def test_work_inside_and_nothing_else_moves() -> None:
    here = os.readlink(namespace.THREAD_NAMESPACE)
    made = await namespace.make_namespace()
    try:
        assert not os.get_inheritable(made)
        assert await namespace.run_inside(made, interfaces) == ["lo"]
        assert os.readlink(namespace.THREAD_NAMESPACE) == here
        assert await trio.to_thread.run_sync(os.readlink, namespace.THREAD_NAMESPACE) == here

        def forwarding() -> str:
            with open(namespace.FORWARDING) as file:
                return file.read()

        outside = forwarding()
        await namespace.run_inside(made, namespace.enable_forwarding)
        assert await namespace.run_inside(made, forwarding) == "1\n"
        assert forwarding() == outside
    finally:
        os.close(made)


async def test_what_fails_inside_is_raised() -> None:
    made = await namespace.make_namespace()

    def fail() -> None:
        raise FileNotFoundError("inside")

    with pytest.raises(FileNotFoundError, match="inside"):
        await namespace.run_inside(made, fail)
    os.close(made)
    with pytest.raises(OSError):
        await namespace.run_inside(made, interfaces)


async def test_all_members_are_killed_and_nobody_else() -> None:
    made = await namespace.make_namespace()
    # One that forks without end, in a pid namespace of its own.
    line = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{made}", "unshare", "--pid", "--fork"]
    forking = subprocess.Popen(  # noqa: ASYNC220
        [*line, "sh", "-c", "echo x; while :; do sleep 1000 & sleep 0.01; done"], stdout=subprocess.PIPE
    )
    bystander = subprocess.Popen(["sleep", "1000"])  # noqa: ASYNC220
    try:
        assert forking.stdout is not None
        assert forking.stdout.read(1) == b"x"
        assert forking.pid in namespace.members(made)
        other = namespace.open_namespace_of(forking.pid)
        assert os.path.sameopenfile(other, made)
        os.close(other)
        with trio.fail_after(20):
            await namespace.kill_members(made)
        assert namespace.members(made) == []
        assert forking.wait() == -9
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        forking.communicate()
        os.close(made)
