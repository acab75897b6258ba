"""systemd's answers over D-Bus: against a real dbus-daemon with a stub of systemd, and against what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sulla_trio.errors import ConfigError
from sulla_trio.link import endpoint, systemd
from tests.support.systemd_stub import bus_with_systemd

UNIT = "network-namespace.service"


@pytest.mark.parametrize(
    ("unit", "escaped"),
    [
        (UNIT, "network_2dnamespace_2eservice"),
        ("a@b:c_d.service", "a_40b_3ac_5fd_2eservice"),
        ("0x9", "_30x9"),
        ("é", "_c3_a9"),
        ("", "_"),
    ],
)
def test_unit_names_are_escaped_as_systemd_does(unit: str, escaped: str) -> None:
    assert systemd.unit_path(unit) == "/org/freedesktop/systemd1/unit/" + escaped


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("unix:path=/nowhere/bus", "no such file or directory"),
        ("tcp:host=localhost,port=1", "not supported"),
        ("nonsense", "systemd at nonsense: "),
    ],
)
async def test_no_bus_is_one_line(address: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await systemd.main_pid(UNIT, address)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# jeepney leaves the socket of a failed login to the garbage collector; network-setup ends then.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("answer", [b"", b"REJECTED EXTERNAL\r\n", b"\0" * 100], ids=["nothing", "refused", "noise"])
async def test_a_bus_that_is_none_is_one_line(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "bus")

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listener = await endpoint.listen(endpoint.parse_endpoint(f"unix://{path}"))
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        with pytest.raises(ConfigError), trio.fail_after(20):
            await systemd.main_pid(UNIT, f"unix:path={path}")
        nursery.cancel_scope.cancel()


@pytest.mark.e2e
async def test_answers_of_a_real_bus() -> None:
    with bus_with_systemd({systemd.unit_path(UNIT): 4711, systemd.unit_path("idle.service"): 0}) as address:
        assert await systemd.main_pid(UNIT, address) == 4711
        with pytest.raises(ConfigError, match=r"^idle.service has no main process \(MainPID is 0\)"):
            await systemd.main_pid("idle.service", address)
        with pytest.raises(ConfigError, match=r"Unknown object '/org/freedesktop/systemd1/unit/no_2eservice'"):
            await systemd.main_pid("no.service", address)
    with bus_with_systemd(None) as address, pytest.raises(ConfigError, match=r"org\.freedesktop\.systemd1"):
        await systemd.main_pid(UNIT, address)
