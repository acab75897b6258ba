"""host-switch as a task: its link, its listeners, its end."""

from __future__ import annotations

import logging
import socket

import pytest
import trio

from sulla_trio.config import PortForward, network_config
from sulla_trio.daemons.host_switch import HostSwitchConfig, host_switch
from sulla_trio.errors import ConfigError


def only(group: BaseExceptionGroup) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    return error


async def connected(path: str) -> trio.SocketStream:
    """A connection to the listener at `path`, which may not be there yet."""
    while True:
        try:
            return await trio.open_unix_socket(path)
        except (FileNotFoundError, ConnectionRefusedError):
            await trio.sleep(0.005)


async def test_the_end_of_the_given_connection_ends_it_with_status_1(caplog: pytest.LogCaptureFixture) -> None:
    left, right = socket.socketpair()
    config = HostSwitchConfig(network_config(), data=f"fd://{left.detach()}", strict=True)
    with caplog.at_level(logging.WARNING), trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                assert await host_switch(config) == 1

            nursery.start_soon(run)
            await trio.sleep(0.05)
            right.close()
    assert "data connection lost" in caplog.text


async def test_links_come_and_go_on_a_listening_endpoint(tmp_path) -> None:
    path = tmp_path / "data.sock"
    config = HostSwitchConfig(network_config(), data=f"unix://{path}", strict=True)
    arp = bytes.fromhex(
        "ffffffffffff5a94efe40cee0806 0001080006040001 5a94efe40cee c0a87f02 000000000000 c0a87f01".replace(" ", "")
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host_switch, config)
        with trio.fail_after(20):
            for _ in range(2):
                async with await connected(str(path)) as link:
                    await link.send_all(len(arp).to_bytes(2, "little") + arp)
                    reply = await link.receive_some()
                    assert reply[2 + 20 : 2 + 22] == b"\x00\x02"
        nursery.cancel_scope.cancel()


async def test_a_taken_static_forward_is_one_line(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        local = f"127.0.0.1:{taken.getsockname()[1]}"
        config = HostSwitchConfig(network_config(), forwards=(PortForward(local, "192.168.127.2:80"),))
        with pytest.raises(BaseExceptionGroup) as caught:
            await host_switch(config)
    error = only(caught.value)
    assert isinstance(error, ConfigError)
    assert str(error) == f"creating virtual network failed: listen tcp {local}: bind: address already in use"
