"""host-switch: terminates guests' frames in the user-space stack and dials the outside by ordinary sockets.

Source: specs/daemons.md section 3.2 and 5; DESIGN sections 1 and 5.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import trio

from sulla_trio.config import NetworkConfig, PortForward, format_ip
from sulla_trio.errors import ConfigError, ForwardError
from sulla_trio.link import endpoint as endpoints
from sulla_trio.link.discovery import Candidates
from sulla_trio.link.endpoint import EndpointUrl
from sulla_trio.link.host_handshake import HostHandshake
from sulla_trio.link.process import raise_descriptor_limit
from sulla_trio.vnet.network import VirtualNetwork
from sulla_trio.wire.handshake import Dialect

log = logging.getLogger(__name__)

COUNTER_INTERVAL = 5.0
"""Seconds between two lines of byte counters with ``-debug``."""


@dataclass(frozen=True, slots=True)
class HandshakeConfig:
    """Which VM host-switch looks for, and how."""

    candidates: Candidates
    dialect: Dialect
    data: EndpointUrl | None = None
    """Where the data connection comes to; None: it follows from the VM."""


@dataclass(frozen=True, slots=True)
class HostSwitchConfig:
    """What the command line says, checked."""

    network: NetworkConfig
    forwards: tuple[PortForward, ...] = ()
    listen: tuple[str, ...] = ()
    """Endpoint URLs of the host API; empty: none."""
    data: str = ""
    """Without a handshake: ``fd://N`` (connected, given by the parent), or a URL where every connection is a guest's."""
    handshake: HandshakeConfig | None = None
    """How the VM is found; None: not at all, `data` alone counts."""
    state: str = ""
    """File that forwards and leases are kept in over a restart; empty: none."""
    debug: bool = False
    strict: bool = False


async def host_switch(config: HostSwitchConfig) -> int:
    """Run until a signal or, with ``--data fd://N``, until that connection ends. Returns the exit status.

    Raises:
        ConfigError: a static forward or a listener cannot be had; the message names it.
    """
    raise_descriptor_limit()
    network = VirtualNetwork(config.network, strict=config.strict)
    # Around the nursery: a SIGTERM that comes while a lost link is being cleaned up must not cut the cleaning short.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_signals, signals, nursery.cancel_scope)
            await _serve(network, config, nursery)
    return 1


async def _serve(network: VirtualNetwork, config: HostSwitchConfig, nursery: trio.Nursery) -> None:
    """Start everything in `nursery`, in the order that specs/daemons.md section 3.2 has it."""
    await nursery.start(network.run)
    try:
        await network.add_static_forwards(config.forwards)
    except ForwardError as error:
        raise ConfigError(f"creating virtual network failed: {error}") from None
    if config.state:
        await _keep_state(network, config.state, nursery)
    if config.data:
        await nursery.start(_serve_data, network, config.data, nursery.cancel_scope)
    if config.handshake is not None:
        nursery.start_soon(_serve_vm, network, config.handshake)
    # Quart and Hypercorn take half a second to import: after the link, so that the first frame does not wait for them.
    await nursery.start(_serve_api, network, config.listen)
    network.events.emit("daemon.ready", gateway=format_ip(config.network.gateway_ip))
    if config.debug:
        nursery.start_soon(_log_counters, network)


async def _keep_state(network: VirtualNetwork, path: str, nursery: trio.Nursery) -> None:
    from sulla_trio.daemons.state_file import keep_state  # msgspec is for those who have a file

    await nursery.start(keep_state, network, path)


async def _watch_signals(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("signal caught: %s", signal.Signals(number).name)
        scope.cancel()


async def _serve_data(
    network: VirtualNetwork,
    url_text: str,
    scope: trio.CancelScope,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    url = endpoints.parse_endpoint(url_text)
    if url.scheme == "fd":
        endpoint = await endpoints.connect(url)
        task_status.started()
        failure = await network.serve_link(endpoint)
        log.warning("data connection lost: %s", failure or "end of stream")
        scope.cancel()
        return
    try:
        listener = await endpoints.listen_endpoints(url)
    except OSError as error:
        raise ConfigError(f"cannot listen for the data connection on {url_text}: {error.strerror or error}") from None
    task_status.started()
    log.info("waiting for clients...")
    await trio.serve_listeners(partial(_serve_accepted, network), [listener])


async def _serve_vm(network: VirtualNetwork, config: HandshakeConfig) -> None:
    """Find the VM and carry its frames, again whenever it is lost; the network stays as it is meanwhile."""
    handshake = HostHandshake(config.candidates, config.dialect, config.data, network.events.emit)
    while True:
        link = await handshake.attach()
        log.info("waiting for clients...")
        failure = await network.serve_link(link)
        if failure is not None:
            log.error("data connection error: %s", failure)
        log.warning("data connection lost; restarting handshake")


async def _serve_accepted(network: VirtualNetwork, endpoint: endpoints.Endpoint) -> None:
    failure = await network.serve_link(endpoint)
    if failure:
        log.error("data connection error: %s", failure)


async def _serve_api(
    network: VirtualNetwork, listen: tuple[str, ...], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    from sulla_trio.api.serve import serve_apis

    await serve_apis(network, listen, task_status=task_status)


async def _log_counters(network: VirtualNetwork) -> None:
    counters = network.driver.counters
    while True:
        await trio.sleep(COUNTER_INTERVAL)
        log.debug(
            "%d bytes sent to the VM, %d bytes received from the VM", counters.bytes_sent, counters.bytes_received
        )
