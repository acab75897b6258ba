"""What systemd knows of a unit, over D-Bus.

Source: specs/daemons.md section 4.2b; org.freedesktop.systemd1(5); the D-Bus specification, "Message Bus" and "Server Addresses".
"""

from __future__ import annotations

import string
from typing import Final

import trio

from sulla_trio.errors import ConfigError

DEFAULT_SYSTEM_BUS: Final = "unix:path=/var/run/dbus/system_bus_socket"
REPLY_TIMEOUT: Final = 10.0
"""Seconds for connecting and one answer; systemd answers in milliseconds."""
UNITS: Final = "/org/freedesktop/systemd1/unit/"
SERVICE: Final = "org.freedesktop.systemd1.Service"
_PLAIN: Final = frozenset(string.ascii_letters + string.digits)


def unit_path(unit: str) -> str:
    """The object path of a unit: each byte of its name but letters, digits (not in front) is ``_`` and two hex digits."""
    if not unit:
        return UNITS + "_"
    return UNITS + "".join(
        character if character in _PLAIN and not (index == 0 and character.isdigit()) else _escape(character)
        for index, character in enumerate(unit)
    )


def _escape(character: str) -> str:
    return "".join(f"_{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


async def main_pid(unit: str, system_bus: str = DEFAULT_SYSTEM_BUS) -> int:
    """The process id of the main process of service `unit`.

    Raises:
        ConfigError: no bus, no systemd on it, no such unit, or no main process; one line.
    """
    from jeepney import DBusAddress, MessageType, Properties, message_bus
    from jeepney.bus import get_bus
    from jeepney.io.trio import DBusConnection

    question = Properties(DBusAddress(unit_path(unit), "org.freedesktop.systemd1", SERVICE)).get("MainPID")
    failure = f"failed to get the main process of {unit} from systemd at {system_bus}"
    try:
        with trio.fail_after(REPLY_TIMEOUT):
            # Not jeepney's `open_dbus_router`: it leaves the socket open when the bus refuses the login.
            async with await trio.open_unix_socket(get_bus(system_bus)) as stream:
                await _log_in(stream)
                async with DBusConnection(stream.socket).router() as router:
                    await router.send_and_get_reply(message_bus.Hello())
                    reply = await router.send_and_get_reply(question)
    except trio.TooSlowError:
        raise ConfigError(f"{failure}: no answer within {REPLY_TIMEOUT:.0f} s") from None
    except Exception as error:  # jeepney has no common root for a bad address, a refused login and a bus that hangs up
        raise ConfigError(f"{failure}: {_reason(error)}") from error
    if reply.header.message_type is MessageType.error:
        raise ConfigError(f"{failure}: {' '.join(map(str, reply.body)) or 'it refuses'}")
    kind, pid = reply.body[0]
    if kind != "u":
        raise ConfigError(f"{failure}: MainPID has type {kind}, not u")
    if not pid:
        raise ConfigError(f"{unit} has no main process (MainPID is 0): start it first, `systemctl start {unit}`")
    return int(pid)


async def _log_in(stream: trio.SocketStream) -> None:
    """The authentication of the D-Bus specification, by uid. Raises as jeepney and `stream` do."""
    from jeepney.auth import BEGIN, Authenticator

    login = Authenticator(inc_null_byte=False)
    await stream.send_all(b"\0")
    for line in login:
        await stream.send_all(line)
        login.feed(await stream.receive_some())
    await stream.send_all(BEGIN)


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    cause = error.__cause__ or error
    return (getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).lower()
