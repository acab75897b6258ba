"""vm-switch: a tap in the guest's network namespace, its frames to and from the link, and the guest's DHCP lease.

Source: specs/daemons.md section 3.4; DESIGN sections 3 and 6. Unlike the Go daemon it ends at once, with status 1, on a
signal and, where nobody can give it another one over a control descriptor, on a lost link.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from sulla_trio.config import DEFAULT_SUBNET, GUEST_MAC, TAP_NAME
from sulla_trio.daemons.vm_lease import KernelInterface, LeaseKeeper
from sulla_trio.daemons.vm_links import Links
from sulla_trio.daemons.vm_pump import Pump, explain
from sulla_trio.daemons.vm_trace import Tracer
from sulla_trio.errors import ConfigError
from sulla_trio.link import address, control, endpoint, tap
from sulla_trio.link.process import set_process_name

if TYPE_CHECKING:
    from sulla_trio.daemons.vm_udhcpc import Udhcpc

log = logging.getLogger(__name__)

COUNTER_INTERVAL: Final = 5.0
"""Seconds between two lines of byte counters with ``-debug``."""


@dataclass(frozen=True, slots=True)
class VmSwitchConfig:
    """What the command line and the environment say, checked."""

    link: str = "fd://3"
    """Endpoint URL of the first link: ``fd://N`` of ``-vsock-fd N``, or ``--link URL``."""
    control: int | None = None
    """Descriptor over which further links come (`sulla_trio.link.control`); None: a lost link is the end."""
    tap_interface: str = TAP_NAME
    tap_mac: bytes | None = GUEST_MAC
    """None (an empty ``-tap-mac-address``): the kernel's random one."""
    subnet: str = DEFAULT_SUBNET
    """Compared with the lease, which is what counts."""
    debug: bool = False
    trace_packets: bool = False
    dhcp_script: str = ""
    """The script of a udhcpc that is run instead of our client; empty: ours."""
    resolv_conf: str | None = None
    """``--resolv-conf PATH``: written with the lease's servers; None: never written."""
    ready_fd: int | None = None
    """``--ready-fd N``: one line is written there, and N closed, when the first lease is in place."""
    strict: bool = False
    """Poison consumed receive buffers (debug builds)."""


async def vm_switch(config: VmSwitchConfig) -> int:
    """Run until a signal or until the tap, network-setup or (without a control descriptor) the link is lost, which the log
    tells; the exit status is 1 then.

    Raises:
        ConfigError: the tap, `lo`, the link or the control descriptor cannot be had; the message names it.
    """
    set_process_name("vm-switch")
    failure: ConfigError | None = None
    daemon = _VmSwitch(config)
    async with trio.open_nursery() as nursery:
        daemon.scope = nursery.cancel_scope
        await nursery.start(daemon.watch_signals)
        try:
            await daemon.run()
        except ConfigError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    log.error("%s", daemon.reason)
    return 1


class _VmSwitch:
    """One process's tap, its link of the moment, and who else it talks to."""

    def __init__(self, config: VmSwitchConfig) -> None:
        self._config = config
        self._tracer = Tracer(config.trace_packets)
        self.scope = trio.CancelScope()
        self.reason = ""

    def end(self, reason: str) -> None:
        """Stop everything; the first `reason` is the one that is told."""
        self.reason = self.reason or reason
        self.scope.cancel()

    async def watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """SIGTERM and SIGINT end it at any moment, SIGUSR1 toggles tracing."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) as received:
            task_status.started()
            async for number in received:
                if number == signal.SIGUSR1:
                    self._tracer.toggle()
                else:
                    self.end(f"signal caught: {signal.strsignal(number) or number}".lower())

    async def run(self) -> None:
        """Until `end`.

        Raises:
            ConfigError: see `vm_switch`.
        """
        config = self._config
        with contextlib.ExitStack() as stack:
            # These first: the numbers of inherited descriptors must not be taken by other files.
            channel = None
            if config.control is not None:
                channel = stack.enter_context(control.inherited(config.control))
            link = await _connect(endpoint.parse_endpoint(config.link))
            stack.callback(link.close)
            tap.bring_up_loopback()
            if tap.is_missing():
                await trio.to_thread.run_sync(tap.load_module, abandon_on_cancel=True)
            descriptor = tap.open_tap(config.tap_interface, config.tap_mac)
            stack.callback(_close, descriptor)
            address.disable_ipv6(config.tap_interface)
            await self._serve(descriptor, link, channel)

    async def _serve(self, descriptor: int, link: endpoint.Endpoint, channel: socket.socket | None) -> None:
        config = self._config
        pump = Pump(descriptor, self._tracer, strict=config.strict, end=self.end)
        dhcp = self._dhcp_client(pump)
        links = Links(pump, link, channel, attached=dhcp.reconfirm, end=self.end)
        try:
            async with trio.open_nursery() as nursery:
                for task in (links.carry, links.listen, dhcp.run, self._tracer.run):
                    nursery.start_soon(task)
                if config.debug:
                    nursery.start_soon(_log_counters, pump)
        finally:
            links.close()

    def _dhcp_client(self, pump: Pump) -> LeaseKeeper | Udhcpc:
        config = self._config
        if config.dhcp_script:
            from sulla_trio.daemons.vm_udhcpc import Udhcpc  # 10 ms that nobody else is to wait for

            udhcpc = Udhcpc(config.tap_interface, config.dhcp_script, has_address=tap.has_address)
            try:
                udhcpc.start()
            except ConfigError as error:
                log.error("dhcp error: %s; the built-in DHCP client is used instead", error)
            else:
                return udhcpc
        keeper = LeaseKeeper(
            KernelInterface(config.tap_interface),
            config.tap_mac or tap.hardware_address(config.tap_interface),
            subnet=_parse_subnet(config.subnet),
            resolv_conf=config.resolv_conf,
            ready_fd=config.ready_fd,
            send=pump.send,
            end=self.end,
        )
        pump.takes_reply = keeper.receive
        return keeper


async def _connect(url: endpoint.EndpointUrl) -> endpoint.Endpoint:
    try:
        return await endpoint.connect(url)
    except OSError as error:
        raise ConfigError(f"cannot connect the link {url.text}: {explain(error)}") from None


def _parse_subnet(text: str) -> ipaddress.IPv4Network | None:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError:  # the Go daemon takes anything here
        log.warning("-subnet %s is not an IPv4 network; it is not compared with the lease", text)
        return None


def _close(descriptor: int) -> None:
    trio.lowlevel.notify_closing(descriptor)
    os.close(descriptor)


async def _log_counters(pump: Pump) -> None:
    while True:
        await trio.sleep(COUNTER_INTERVAL)
        log.debug("%d bytes sent to the host, %d bytes received from the host", pump.bytes_sent, pump.bytes_received)
