"""A program that publishes ports on a real host-switch is killed: its ports go, everybody else's stay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.e2e.test_state_file import PATIENCE, HostSwitch, ask
from tests.forward.test_forward_address import free_port

pytestmark = pytest.mark.e2e

PUBLISHER = """
import sys, trio, trio_websocket
async def main():
    stream = await trio.open_unix_socket(sys.argv[1])
    async with trio.open_nursery() as nursery:
        client = await trio_websocket.wrap_client_stream(nursery, stream, "host-switch", "/v1/forwards")
        await client.send_message(sys.argv[2])
        print(await client.get_message(), flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def wait_for(host: HostSwitch, *locals_: str) -> None:
    with trio.fail_after(PATIENCE):
        while set(await host.forwards()) != set(locals_):
            await trio.sleep(0.05)


async def test_a_publisher_that_is_killed_takes_its_ports_along(tmp_path: Path) -> None:
    host = HostSwitch(tmp_path)
    mine, beaten, other = (f"127.0.0.1:{free_port()}" for _ in range(3))
    with host.running():
        await host.curl("/services/forwarder/expose", {"local": other, "remote": "192.168.127.2:80"})
        await host.curl("/services/forwarder/expose", {"local": beaten, "remote": "192.168.127.2:80", "owner": "heart"})
        wanted = {"forwards": [{"local": local, "remote": "192.168.127.2:80"} for local in (mine, other)]}
        command = [sys.executable, "-c", PUBLISHER, str(host.api), json.dumps(wanted)]
        publisher = await trio.to_thread.run_sync(lambda: subprocess.Popen(command, stdout=subprocess.PIPE))
        with publisher:
            assert publisher.stdout is not None
            answer = json.loads(await trio.to_thread.run_sync(publisher.stdout.readline))
            assert [(one["state"], one.get("by")) for one in answer["forwards"]] == [
                ("active", None),
                ("conflict", "api"),
            ]
            async with host.guest():
                assert await ask(mine) == b"hello"
            await wait_for(host, mine, beaten, other)
            publisher.kill()
        await wait_for(host, beaten, other)
        await host.wait_written(other)
        assert mine not in host.state.read_text()
        assert beaten not in host.state.read_text()
        await wait_for(host, other)  # the heart-beats of the other owner never came
        with pytest.raises(OSError, match="attempts to connect"):
            await ask(beaten)
