"""Both directions through a VMM's unix socket, and every way in which it can answer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from sulla_trio.link.endpoint import connect, listen_endpoints, parse_endpoint
from sulla_trio.link.hybrid_vsock import REPLY_TIMEOUT
from tests.support.endpoint_io import receive, receive_exactly, send
from tests.support.hybrid_vmm import Greeter, HybridVmm


@pytest.fixture
async def vmm(tmp_path: Path, nursery: trio.Nursery) -> HybridVmm:
    vmm = HybridVmm(tmp_path / "fc.sock")
    await nursery.start(vmm.run)
    return vmm


async def scripted(tmp_path: Path, nursery: trio.Nursery, answer: bytes, *, close: bool) -> str:
    """The URL of a VMM that answers anything with `answer`."""
    path = tmp_path / "s.sock"
    listener = await listen_endpoints(parse_endpoint(f"unix://{path}"))

    async def serve() -> None:
        async with listener, await listener.accept() as endpoint:
            await receive(endpoint)
            await send(endpoint, answer)
            if not close:
                await trio.sleep_forever()

    nursery.start_soon(serve)
    return f"vsock+unix://{path}:6669"


async def test_dial_takes_no_byte_of_the_guests_stream(vmm: HybridVmm) -> None:
    vmm.ports[6669] = Greeter(b"\nOK 1\nsignature")
    endpoint = await connect(parse_endpoint(f"{vmm.url}:6669"))
    assert vmm.requests == [b"CONNECT 6669\n"]
    assert await receive_exactly(endpoint, 15) == b"\nOK 1\nsignature"
    await send(endpoint, b"READY")
    assert await receive(endpoint) == b"READY"
    assert endpoint.peer == f"unix:{os.getuid()}"
    assert endpoint.name == f"{vmm.url}:6669"
    await endpoint.aclose()


async def test_nobody_listens_in_the_guest(vmm: HybridVmm) -> None:
    with pytest.raises(ConnectionRefusedError, match="vsock port 6669"):
        await connect(parse_endpoint(f"{vmm.url}:6669"))


async def test_the_guest_dials_the_host(vmm: HybridVmm) -> None:
    with pytest.raises(FileNotFoundError):
        await vmm.dial_host(6656)
    async with await listen_endpoints(parse_endpoint(f"{vmm.url}:6656")) as listener:
        file = vmm.path.with_name(f"{vmm.path.name}_6656")
        assert file.stat().st_mode & 0o777 == 0o600
        stream = await vmm.dial_host(6656)
        async with stream, await listener.accept() as endpoint:
            await stream.send_all(b"frames")
            assert await receive(endpoint) == b"frames"
    assert not file.exists()
    assert vmm.path.exists()


@pytest.mark.parametrize(
    "answer", [b"NO\n", b"OK\n", b"HTTP/1.1 400 Bad", b"OK 1\r\n", b"\0" * 14, b"OK 99999999999999"]
)
async def test_an_answer_that_is_none(tmp_path: Path, nursery: trio.Nursery, answer: bytes) -> None:
    with pytest.raises(OSError, match="answers CONNECT with") as caught:
        await connect(parse_endpoint(await scripted(tmp_path, nursery, answer, close=False)))
    assert caught.value.errno == errno.EPROTO
    nursery.cancel_scope.cancel()


async def test_closed_within_the_answer(tmp_path: Path, nursery: trio.Nursery) -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect(parse_endpoint(await scripted(tmp_path, nursery, b"OK 12", close=True)))


async def test_silence_has_an_end(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    url = await scripted(tmp_path, nursery, b"OK 1", close=False)
    start = trio.current_time()
    with pytest.raises(TimeoutError, match="does not answer"):
        await connect(parse_endpoint(url))
    assert trio.current_time() - start == pytest.approx(REPLY_TIMEOUT)
    nursery.cancel_scope.cancel()


async def test_cancelled_while_waiting_for_the_answer(tmp_path: Path, nursery: trio.Nursery) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with trio.CancelScope() as scope:
        path = tmp_path / "s.sock"
        async with await listen_endpoints(parse_endpoint(f"unix://{path}")) as listener:
            nursery.start_soon(connect, parse_endpoint(f"vsock+unix://{path}:1"))
            async with await listener.accept() as vmm:
                assert await receive(vmm) == b"CONNECT 1\n"
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    assert await receive(vmm) == b""
    assert not scope.cancelled_caught
    assert set(os.listdir("/proc/self/fd")) == before
