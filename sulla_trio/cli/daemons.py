"""Command lines of the daemons: the Go flags, checked into frozen configurations, run with trio.

Source: specs/daemons.md sections 3.2 and 3.4; flags with two dashes are ours. Each daemon is also
``python -m sulla_trio.cli.daemons NAME ARGS...``. Nothing heavy is imported before the flags have been read, and vm-switch
never imports what only host-switch needs.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sulla_trio.cli import logrus
from sulla_trio.cli.goflags import FlagSet, run_flags
from sulla_trio.config import (
    DEFAULT_MTU,
    DEFAULT_SUBNET,
    GUEST_MAC,
    TAP_NAME,
    NetworkConfig,
    format_mac,
    network_config,
    parse_mac,
    parse_port_forward,
)
from sulla_trio.errors import ConfigError

if TYPE_CHECKING:
    from sulla_trio.daemons.host_switch import HostSwitchConfig
    from sulla_trio.daemons.vm_switch import VmSwitchConfig

log = logging.getLogger(__name__)

STANDARD_STREAMS: Final = {"/dev/stdout": 1, "/dev/stderr": 2}
"""Log file names that mean the descriptor: as paths they cannot be opened where the stream is a socket (systemd)."""


def host_switch(argv: Sequence[str] | None = None) -> int:
    """Entry point of host-switch; the exit status."""
    program, arguments = _command_line("host-switch", argv)
    values, status = run_flags(host_switch_flags(program), arguments, _to_stderr)
    if values is None:
        return status

    def prepare() -> Callable[[], Awaitable[int]]:
        config = host_switch_config(values)
        from sulla_trio.daemons import host_switch as daemon

        return lambda: daemon.host_switch(config)

    return _run("host-switch", values, prepare)


def vm_switch(argv: Sequence[str] | None = None) -> int:
    """Entry point of vm-switch; the exit status."""
    program, arguments = _command_line("vm-switch", argv)
    values, status = run_flags(vm_switch_flags(program), arguments, _to_stderr)
    if values is None:
        return status

    def prepare() -> Callable[[], Awaitable[int]]:
        config = vm_switch_config(values)
        from sulla_trio.daemons import vm_switch as daemon

        return lambda: daemon.vm_switch(config)

    return _run("vm-switch", values, prepare)


def host_switch_flags(program: str) -> FlagSet:
    """The flags of host-switch."""
    flags = FlagSet(program)
    flags.add_bool("debug", "log at DEBUG, and byte counters every 5 seconds")
    flags.add_string("subnet", "virtual network, as a CIDR", default=DEFAULT_SUBNET)
    flags.add_repeated("port-forward", "static forward HostIP:Port=GuestIP:Port, repeatable; udp: in front for UDP")
    flags.add_repeated(
        "listen", "serve the API on `URL` (unix:///path or tcp://host:port), repeatable; none for nowhere", ours=True
    )
    flags.add_string("data", "data connection at `URL`: fd://N, or one to listen on", ours=True)
    flags.add_int("mtu", "MTU of the virtual network in bytes", default=DEFAULT_MTU, ours=True)
    flags.add_bool("no-host-loopback", "do not let the guest reach 127.0.0.1 of the host through .254", ours=True)
    flags.add_string("host-loopback-ports", "only these ports through .254: a comma-separated `LIST`", ours=True)
    flags.add_repeated("deny-out", "do not let the guest reach `CIDR`, repeatable", ours=True)
    flags.add_bool("strict", "let an unexpected exception end the daemon", ours=True)
    flags.add_string("logfile", "log to `PATH` instead of stderr", ours=True)
    return flags


def vm_switch_flags(program: str) -> FlagSet:
    """The flags of vm-switch."""
    flags = FlagSet(program)
    flags.add_bool("debug", "log at DEBUG")
    flags.add_bool("trace-packets", "log every packet at INFO; SIGUSR1 toggles it")
    flags.add_string("tap-interface", "name of the tap", default=TAP_NAME)
    flags.add_int("vsock-fd", "inherited descriptor of the data connection", default=3)
    flags.add_string("dhcp-script", "accepted and not used: the DHCP client is built in")
    flags.add_string("tap-mac-address", "MAC of the tap; empty leaves the kernel's", default=format_mac(GUEST_MAC))
    flags.add_string("subnet", "accepted and not used: the lease says it", default=DEFAULT_SUBNET)
    flags.add_string("logfile", "log to this file", default="/var/log/vm-switch.log")
    flags.add_bool("logfile-append", "append to the log file instead of truncating it")
    flags.add_string("link", "data connection at `URL` instead of -vsock-fd", ours=True)
    flags.add_string("resolv-conf", "write the lease's DNS servers to `PATH`", ours=True)
    flags.add_int(
        "ready-fd", "write one line to descriptor `N` when the first lease is in place", default=-1, ours=True
    )
    flags.add_bool("strict", "let an unexpected exception end the daemon", ours=True)
    return flags


def host_switch_config(values: dict[str, Any]) -> HostSwitchConfig:
    """The configuration that parsed flags mean.

    Raises:
        ConfigError: a value cannot be used.
    """
    network = _network(values)
    # Twice the same host address: the last wins, as in the Go daemon's map.
    forwards = {(one.protocol, one.local): one for one in map(parse_port_forward, values["port-forward"])}
    listen = values["listen"]
    if not listen:
        from sulla_trio.api.location import default_listen

        listen = (default_listen(),) if os.name == "posix" else ("tcp://127.0.0.1:0",)
    elif "none" in listen:
        if set(listen) != {"none"}:
            raise ConfigError("--listen none and --listen URL contradict each other; give one of them")
        listen = ()
    from sulla_trio.daemons.host_switch import HostSwitchConfig

    return HostSwitchConfig(
        network=network,
        forwards=tuple(forwards.values()),
        listen=listen,
        data=values["data"],
        debug=values["debug"],
        strict=values["strict"],
    )


def _network(values: dict[str, Any]) -> NetworkConfig:
    denied = []
    for text in values["deny-out"]:
        try:
            denied.append(ipaddress.IPv4Network(text, strict=False))
        except ValueError:
            raise ConfigError(f"--deny-out {text}: want an IPv4 network such as 10.0.0.0/8") from None
    return replace(
        network_config(values["subnet"], values["mtu"]),
        host_loopback=not values["no-host-loopback"],
        host_loopback_ports=parse_ports(values["host-loopback-ports"]),
        deny_out=tuple(denied),
    )


def parse_ports(text: str) -> frozenset[int] | None:
    """``80,443,8000-8010``; None for an empty text: no restriction.

    Raises:
        ConfigError: not such a list, or a port outside 1 to 65535.
    """
    if not text:
        return None
    ports: set[int] = set()
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        bounds = (first, last if dash else first)
        if not all(bound.isascii() and bound.isdigit() and 1 <= int(bound[:6]) <= 65_535 for bound in bounds):
            raise ConfigError(f"--host-loopback-ports {text}: {item!r} is not a port; want for example 80,8000-8010")
        ports.update(range(int(bounds[0]), int(bounds[1]) + 1))
    return frozenset(ports)


def vm_switch_config(values: dict[str, Any]) -> VmSwitchConfig:
    """The configuration that parsed flags mean.

    Raises:
        ConfigError: a value cannot be used.
    """
    mac = values["tap-mac-address"]
    name = values["tap-interface"]
    if not 1 <= len(os.fsencode(name)) <= 15 or "/" in name or name.isspace():
        raise ConfigError(f"-tap-interface {name!r} is not an interface name; want 1 to 15 bytes without a slash")
    from sulla_trio.daemons.vm_switch import VmSwitchConfig

    return VmSwitchConfig(
        link=values["link"] or f"fd://{values['vsock-fd']}",
        tap_interface=name,
        tap_mac=parse_mac(mac) if mac else None,
        debug=values["debug"],
        trace_packets=values["trace-packets"],
        dhcp_script=values["dhcp-script"],
        resolv_conf=values["resolv-conf"] or None,
        ready_fd=values["ready-fd"] if values["ready-fd"] >= 0 else None,
        strict=values["strict"],
    )


def _command_line(name: str, argv: Sequence[str] | None) -> tuple[str, Sequence[str]]:
    return (sys.argv[0], sys.argv[1:]) if argv is None else (name, argv)


def _to_stderr(text: str) -> None:
    try:
        os.write(2, text.encode("utf-8", "surrogateescape"))
    except OSError:
        pass


def _run(name: str, values: dict[str, Any], prepare: Callable[[], Callable[[], Awaitable[int]]]) -> int:
    """Set up the log, then run what `prepare` returns. What cannot be used is one FATAL line and status 1."""
    logrus.set_up_logging(debug=values["debug"])
    try:
        path = values["logfile"]
        if path:
            append = values.get("logfile-append", False)
            descriptor = STANDARD_STREAMS.get(path) or logrus.open_log(path, append=append)
            logrus.set_up_logging(debug=values["debug"], descriptor=descriptor)
        from sulla_trio.link.process import set_process_name

        set_process_name(name)
        main = prepare()
        import trio

        return trio.run(main)
    except BaseExceptionGroup as group:
        causes, bugs = group.split((ConfigError, OSError, KeyboardInterrupt))
        if bugs is not None or causes is None:
            log.critical("internal error", exc_info=True)
            raise
        return _fatal(_first(causes))
    except (ConfigError, OSError, KeyboardInterrupt) as error:
        return _fatal(error)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fatal(error: BaseException) -> int:
    text = "signal caught: interrupt" if isinstance(error, KeyboardInterrupt) else str(error)
    log.critical("%s", text)
    log.debug("traceback of the error above", exc_info=error)
    return 1


DAEMONS: Final = {"host-switch": host_switch, "vm-switch": vm_switch}


def main() -> int:
    """``python -m sulla_trio.cli.daemons NAME ARGS...``"""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in DAEMONS:
        _to_stderr(f"usage: python -m sulla_trio.cli.daemons {'|'.join(DAEMONS)} ARGS...\n")
        return 2
    return DAEMONS[name](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
