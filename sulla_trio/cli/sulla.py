"""`sulla`: run a command on the user-space network, and talk to a running host-switch.

`sulla run` must be quick: nothing but click is imported on its way, least of all Quart, rich or trio-websocket.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sulla_trio import __version__
from sulla_trio.config import DEFAULT_MTU, DEFAULT_SUBNET, PortForward, network_config, parse_port_forward
from sulla_trio.errors import ConfigError, SullaError

if TYPE_CHECKING:
    from sulla_trio.api.client import ApiClient

T = TypeVar("T")


class Failure(click.ClickException):
    """One line on stderr that names the value and the way out."""

    def show(self, file: Any = None) -> None:
        click.echo(f"sulla: {self.format_message()}", file=file or sys.stderr)


class BadOption(Failure):
    """The same for an option whose value cannot be used."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
def cli() -> None:
    """A user-space network between a host and a VM or namespace."""


# sulla run


def _forward(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[PortForward, ...]:
    try:
        return tuple(parse_port_forward(value) for value in values)
    except ConfigError as error:
        raise BadOption(str(error)) from None


@cli.command("run", context_settings={"allow_interspersed_args": False})
@click.option("-p", "--publish", metavar="HOST=GUEST", multiple=True, callback=_forward,
              help="Forward HostIP:Port to GuestIP:Port; udp: in front for UDP. Repeatable.")  # fmt: skip
@click.option("--root", is_flag=True, help="Map your user to root inside.")
@click.option("--mtu", metavar="N", type=int, default=DEFAULT_MTU, show_default=True, help="MTU in bytes.")
@click.option("--subnet", metavar="CIDR", default=DEFAULT_SUBNET, show_default=True, help="The virtual network.")
@click.option("--debug", is_flag=True, help="The daemons log at DEBUG to stderr.")
@click.option("--no-host-loopback", is_flag=True, help="No way to this machine's 127.0.0.1 through .254.")
@click.option("--host-loopback-ports", metavar="LIST", help="Only these ports of 127.0.0.1 through .254.")
@click.option("--deny-out", metavar="CIDR", multiple=True, help="No way to this network. Repeatable.")
@click.option(
    "--udp-filter", metavar="RULE", help="endpoint-independent: UDP from anybody, not from whom CMD sent to alone."
)
@click.option("--listen", metavar="URL", multiple=True, help="Where the host API is; none for nowhere. Repeatable.")
@click.option("--strict", is_flag=True, help="An unexpected exception ends the daemon.")
@click.argument("command", metavar="[--] CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    publish: tuple[PortForward, ...], root: bool, mtu: int, subnet: str, debug: bool, no_host_loopback: bool,
    host_loopback_ports: str | None, deny_out: tuple[str, ...], udp_filter: str | None, listen: tuple[str, ...],
    strict: bool, command: tuple[str, ...],
) -> None:  # fmt: skip
    """Run CMD in a fresh network namespace whose only network is the embedded switch.

    No root and no VM is needed. Options come before CMD; what follows CMD is CMD's.
    """
    from sulla_trio.daemons.run import run as run_command
    from sulla_trio.daemons.run_config import RunConfig

    flags = ["--no-host-loopback"] * no_host_loopback + ["--strict"] * strict
    if host_loopback_ports:
        flags += ["--host-loopback-ports", host_loopback_ports]
    if udp_filter:
        flags += ["--udp-filter", udp_filter]
    for network in deny_out:
        flags += ["--deny-out", network]
    try:
        network_config(subnet, mtu)
        _check_host_flags(flags)
        config = RunConfig(
            command=command,
            forwards=publish,
            root=root,
            mtu=mtu,
            subnet=subnet,
            debug=debug,
            listen=_listen(listen),
            host_switch_flags=tuple(flags),
        )
    except ConfigError as error:
        raise BadOption(str(error)) from None
    sys.exit(run_command(config))


def _check_host_flags(flags: list[str]) -> None:
    """Have host-switch's own reader look at its flags now: its complaint would come from another process, later."""
    if flags:
        from sulla_trio.cli import host_switch

        host_switch.config(host_switch.flags("host-switch").parse(["--listen", "none", *flags]))


def _listen(given: tuple[str, ...]) -> tuple[str, ...]:
    from sulla_trio.api.location import default_listen

    if not given:
        return (default_listen(os.getpid()),)
    return () if given == ("none",) else given


@cli.command("demo")
@click.option("--stay", is_flag=True, help="Leave a shell in the guest with everything up.")
@click.option("--size", metavar="MIB", type=click.IntRange(1, 4096), default=64, show_default=True,
              help="Data moved each way.")  # fmt: skip
def demo(stay: bool, size: int) -> None:
    """Start all four daemons on this machine and show every service, one line per step.

    Namespaces stand for the VM and unix sockets for AF_VSOCK. The exit status says whether all of it worked.
    """
    from sulla_trio.demo.four import demo as show

    sys.exit(show(size=size << 20, stay=stay))


# The API's client


def api_command(name: str, *, json_flag: bool = True) -> Callable[[Callable[..., Awaitable[None]]], click.Command]:
    """A subcommand that gets an `ApiClient` first and, unless told otherwise, ``as_json``."""

    def decorate(function: Callable[..., Awaitable[None]]) -> click.Command:
        def command(api: str | None, **arguments: Any) -> None:
            _run_async(api, function, arguments)

        update_wrapper(command, function)
        wrapped: Any = click.option("--api", metavar="URL", help="The host API; SULLA_API does the same.")(command)
        if json_flag:
            wrapped = click.option("--json", "as_json", is_flag=True, help="JSON for programs.")(wrapped)
        return cli.command(name)(wrapped)

    return decorate


def _run_async(api: str | None, function: Callable[..., Awaitable[None]], arguments: dict[str, Any]) -> None:
    import trio

    from sulla_trio.api.client import ApiClient
    from sulla_trio.api.location import find_api

    async def call() -> None:
        await function(ApiClient(find_api(api, os.environ)), **arguments)

    try:
        trio.run(call)
    except SullaError as error:
        raise Failure(str(error)) from None
    except KeyboardInterrupt:
        sys.exit(130)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


@api_command("expose", json_flag=False)
@click.argument("local")
@click.argument("remote")
@click.option("--udp", is_flag=True, help="UDP instead of TCP.")
async def expose(client: ApiClient, local: str, remote: str, udp: bool) -> None:
    """Have the host listen on LOCAL (IP:Port) and forward to REMOTE (GuestIP:Port)."""
    await client.expose(local, remote, "udp" if udp else "tcp")


@api_command("unexpose", json_flag=False)
@click.argument("local")
@click.option("--udp", is_flag=True, help="UDP instead of TCP.")
async def unexpose(client: ApiClient, local: str, udp: bool) -> None:
    """Stop forwarding LOCAL; its live connections go on."""
    await client.unexpose(local, "udp" if udp else "tcp")


@api_command("ls")
async def ls(client: ApiClient, as_json: bool) -> None:
    """List the forwards."""
    forwards = await client.forwards()
    if as_json:
        _print_json(forwards)
        return
    from sulla_trio.cli import tables

    tables.print_table(("LOCAL", "REMOTE", "PROTOCOL"), tables.forward_rows(forwards), empty="no forwards")


@api_command("flows")
async def flows(client: ApiClient, as_json: bool) -> None:
    """List live and lately closed flows."""
    listed = await client.get("/flows")
    if as_json:
        _print_json(listed)
        return
    from sulla_trio.cli import tables

    columns = ("ID", "KIND", "GUEST", "", "REMOTE", "STATE", "OUT", "IN", "AGE")
    tables.print_table(columns, tables.flow_rows(listed), empty="no flows")


@api_command("leases")
async def leases(client: ApiClient, as_json: bool) -> None:
    """List addresses and who has them."""
    listed = await client.get("/leases")
    if as_json:
        _print_json(listed)
        return
    from sulla_trio.cli import tables

    tables.print_table(("ADDRESS", "MAC"), tables.lease_rows(listed), empty="no leases")


@api_command("stats")
async def stats(client: ApiClient, as_json: bool) -> None:
    """Show the counters; for people only those that are not zero."""
    counted = await client.get("/stats")
    if as_json:
        _print_json(counted)
        return
    from sulla_trio.cli import tables

    tables.print_table(("COUNTER", "VALUE"), tables.stat_rows(counted), empty="nothing counted yet")


@api_command("status")
async def status(client: ApiClient, as_json: bool) -> None:
    """Show whether host-switch answers, and what it carries."""
    counted, forwards = await client.get("/stats"), await client.forwards()
    guests, listed = await client.get("/cam"), await client.get("/flows")
    summary = {
        "api": client.location.url,
        "guests": len(guests),
        "forwards": len(forwards),
        "flows": sum(1 for flow in listed if flow["reason"] is None),
        "bytes_sent": counted["BytesSent"],
        "bytes_received": counted["BytesReceived"],
    }
    if as_json:
        _print_json(summary)
        return
    from sulla_trio.cli import tables

    shown = summary | {name: tables.size(counted[key]) for name, key in
                       (("bytes_sent", "BytesSent"), ("bytes_received", "BytesReceived"))}  # fmt: skip
    tables.print_table(
        ("STATUS", ""), [[name.replace("_", " "), str(value)] for name, value in shown.items()], empty=""
    )


@api_command("events")
@click.option("--types", metavar="A,B", default="", help="Only these types, or families such as flow.")
@click.option("--since", metavar="SEQ", type=click.IntRange(0), help="First those after event number SEQ.")
async def events(client: ApiClient, as_json: bool, types: str, since: int | None) -> None:
    """Print events as they happen; --json prints one object per line."""
    from sulla_trio.cli import tables

    wanted = tuple(name.strip() for name in types.split(",") if name.strip())
    async with client.events(since=since, types=wanted) as stream:
        async for event in stream:
            click.echo(json.dumps(event) if as_json else tables.event_line(event))


def main() -> None:
    """Entry point of ``sulla``."""
    cli(prog_name="sulla")


if __name__ == "__main__":
    main()
