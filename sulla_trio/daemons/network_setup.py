"""network-setup: answers the handshake, makes the guest's network namespace and the way into it, starts what lives there.

Source: specs/daemons.md sections 1.5, 3.3 and 4; DESIGN sections 1 ("Start-up order") and 6. Unlike the Go daemon it outlives
its link: it answers the next handshake and hands the new connection to the vm-switch that runs, or to a new one.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface
from typing import Final

import trio

from sulla_trio.daemons.setup_init import UNSHARE, remove_pid_file, start_init
from sulla_trio.daemons.setup_vm_switch import NSENTER, VmSwitch, VmSwitchCommand
from sulla_trio.errors import ConfigError
from sulla_trio.link import address, namespace, systemd, veth
from sulla_trio.link.child import Child, Inherited, describe_status, signal_text
from sulla_trio.link.endpoint import Endpoint, EndpointUrl
from sulla_trio.link.guest_handshake import GuestHandshake
from sulla_trio.wire.handshake import Dialect

log = logging.getLogger(__name__)

VETH: Final = "veth-rd-wsl"
VETH_ADDRESS: Final = IPv4Interface("192.168.143.2/24")
PEER: Final = "veth-rd-ns"
PEER_ADDRESS: Final = IPv4Interface("192.168.143.1/24")
"""wsl-proxy's ``-upstreamAddress``."""
CLEAN_UP_STEP: Final = 0.4
"""Seconds for a step of the clean-up: all of it takes less than one, and a step that hangs does not keep the others."""
RETRY: Final = 1.0
"""Seconds until the handshake is tried again where it cannot be listened for: as often as a host probes."""
_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


@dataclass(frozen=True, slots=True)
class NetworkSetupConfig:
    """What the command line and the environment say, checked."""

    vm_switch: VmSwitchCommand
    handshake: EndpointUrl
    data: EndpointUrl
    dialect: Dialect
    unshare_arg: str = ""
    """The program that becomes PID 1 of the namespaces that we make."""
    namespace_unit: str = ""
    """systemd mode: the unit whose network namespace is the guest's. Empty: we make one."""
    system_bus: str = systemd.DEFAULT_SYSTEM_BUS
    forward: bool = True
    """IPv4 forwarding in a namespace that we make: what comes in by the veth pair leaves by vm-switch's tap."""
    strict: bool = False
    """An unexpected exception while waiting for the next link ends the daemon."""


async def network_setup(config: NetworkSetupConfig) -> int:
    """Run until a signal or until vm-switch cannot go on; the exit status. Nothing that it made is left then.

    Raises:
        ConfigError: something needed cannot be had or made; the message names it.
    """
    daemon = _NetworkSetup(config, Inherited.current())
    # Around the nursery: a second signal must not cut the clean-up short.
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.watch_signals, signals, nursery.cancel_scope)
            status = await daemon.run(nursery)
            nursery.cancel_scope.cancel()
    if daemon.stopped:
        log.critical("%s", daemon.stopped)
        return 1
    return status


class _NetworkSetup:
    def __init__(self, config: NetworkSetupConfig, inherited: Inherited) -> None:
        self._config = config
        self._inherited = inherited
        self._handshake = GuestHandshake(config.handshake, config.data, config.dialect)
        self._vm_switch: VmSwitch | None = None
        self._init: Child | None = None
        self._ending = False
        self.stopped = ""
        """Why a signal is the end, in the Go daemon's words."""

    async def watch_signals(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        """The first signal ends everything, others change nothing."""
        async for number in signals:
            log.info("signal caught: %s", signal_text(number))
            if not self.stopped:
                killed = f"vm-switch exited with error: {describe_status(-signal.SIGKILL)}"
                self.stopped = killed if self._vm_switch else f"signal caught: {signal_text(number)}"
            scope.cancel()

    async def run(self, nursery: trio.Nursery) -> int:
        """Until vm-switch cannot go on; the status. Raises as `network_setup`."""
        self._check()
        nursery.start_soon(_preload)
        await _remove_veth()
        link = await self._handshake.attach()
        try:
            guest = await self._find_namespace()
            try:
                return await self._serve(guest, link, nursery)
            finally:
                os.close(guest)
        finally:
            link.close()

    def _check(self) -> None:
        """See early what would fail late.

        Raises:
            ConfigError: a privilege or a program is missing.
        """
        with open("/proc/self/status") as file:
            effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
        if missing := [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]:
            raise ConfigError(f"network-setup needs {' and '.join(missing)}: run it as root")
        programs = [("vm-switch", self._config.vm_switch.path), ("nsenter", NSENTER)]
        if not self._config.namespace_unit:
            programs += [("unshare", UNSHARE), ("the unshare program", self._config.unshare_arg)]
        for what, path in programs:
            if shutil.which(path) is None:
                reason = "cannot be executed" if os.path.exists(path) else "no such file or directory"
                raise ConfigError(f"starting {what} failed: {path}: {reason}")

    async def _find_namespace(self) -> int:
        """Descriptor of the guest's network namespace.

        Raises:
            ConfigError: it cannot be made, or systemd's not be found.
        """
        unit = self._config.namespace_unit
        try:
            if not unit:
                made = await namespace.make_namespace()
                log.info("created a new namespace %d", made)
                return made
            pid = await systemd.main_pid(unit, self._config.system_bus)
            found = namespace.open_namespace_of(pid)
        except OSError as error:
            raise ConfigError(f"failed to get network namespace: {(error.strerror or str(error)).lower()}") from None
        log.info("using the network namespace of %s, process %d", unit, pid)
        return found

    async def _serve(self, guest: int, link: Endpoint, nursery: trio.Nursery) -> int:
        """Everything that needs the namespace `guest`, and its removal."""
        config = self._config
        try:
            await trio.to_thread.run_sync(veth.create, VETH, PEER, guest)
        except OSError as error:
            text = f"creating veth pair {VETH} and {PEER} failed: {(error.strerror or str(error)).lower()}"
            raise ConfigError(text) from None
        try:
            log.info("created veth pair %s and %s", VETH, PEER)
            await self._configure_veth(guest)
            self._vm_switch = VmSwitch.start(config.vm_switch, link, guest, self._inherited)
            if not config.namespace_unit:
                self._init = start_init(config.unshare_arg, guest, self._inherited)
                nursery.start_soon(self._watch_init, self._init)
            return await self._supervise(guest, self._vm_switch)
        finally:
            await self._clean_up(guest)

    async def _configure_veth(self, guest: int) -> None:
        """Addresses on both ends; forwarding in a namespace of ours. Raises ConfigError."""
        config = self._config
        try:
            await trio.to_thread.run_sync(veth.set_up, VETH, VETH_ADDRESS)
            await namespace.run_inside(guest, partial(veth.set_up, PEER, PEER_ADDRESS))
        except OSError as error:
            raise ConfigError(f"setting up {error.filename} failed: {(error.strerror or '').lower()}") from None
        if config.forward and not config.namespace_unit:
            try:
                await namespace.run_inside(guest, namespace.enable_forwarding)
            except OSError as error:  # a container's /proc/sys may be read-only; only other namespaces miss it
                log.warning("no forwarding from %s to the network: %s: %s", PEER, error.filename, error.strerror)

    async def _supervise(self, guest: int, vm_switch: VmSwitch) -> int:
        """Keep a vm-switch with a link; its status when it ends with 0.

        Raises:
            ConfigError: one ended without ever having carried frames.
        """
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_attached, vm_switch)
                status = await vm_switch.run()
                nursery.cancel_scope.cancel()
            if not status:
                return 0
            reason = vm_switch.explain(status)
            await vm_switch.close()
            if not vm_switch.has_served:
                raise ConfigError(reason)
            log.warning("%s; waiting for the next handshake", reason)
            link = await self._attach_again()
            vm_switch = self._vm_switch = VmSwitch.start(self._config.vm_switch, link, guest, self._inherited)

    async def _keep_attached(self, vm_switch: VmSwitch) -> None:
        while True:
            await vm_switch.lost.wait()
            vm_switch.attach(await self._attach_again())

    async def _attach_again(self) -> Endpoint:
        """The next link, however long it takes: the guest is there and its programs run."""
        while True:
            try:
                return await self._handshake.attach()
            except ConfigError as error:
                log.error("%s; trying again", error)
            except Exception:
                if self._config.strict:
                    raise
                log.exception("internal error in the handshake; trying again")
            await trio.sleep(RETRY)

    async def _watch_init(self, init: Child) -> None:
        status = await init.wait()
        if self._ending:
            return
        # As with the Go daemon the network stays: who started us looks after init.
        log.error("%s, PID 1 of the namespaces, ended: %s", self._config.unshare_arg, describe_status(status))
        remove_pid_file(init.pid)

    async def _clean_up(self, guest: int) -> None:
        """In the end nothing of ours is left, also when we are cancelled."""
        self._ending = True
        if self._init is not None:
            remove_pid_file(self._init.pid)
        if self._vm_switch is not None:
            await _within_a_step(self._vm_switch.close)
        if not self._config.namespace_unit:  # else its other members are the unit's
            await _within_a_step(partial(namespace.kill_members, guest))
        if self._init is not None:
            await _within_a_step(self._init.kill_and_wait)
        await _within_a_step(_remove_veth)


async def _preload() -> None:
    await trio.to_thread.run_sync(address.preload, abandon_on_cancel=True)


async def _remove_veth() -> None:
    """Delete the veth pair if it is there.

    Raises:
        ConfigError: it is there, and cannot be deleted.
    """
    try:
        if await trio.to_thread.run_sync(veth.delete, VETH, abandon_on_cancel=True):
            log.info("tearing down link %s: <nil>", VETH)
    except OSError as error:
        raise ConfigError(f"tearing down link {VETH}: {(error.strerror or str(error)).lower()}") from None


async def _within_a_step(step: Callable[[], Awaitable[object]]) -> None:
    """One step of the clean-up: in time or not at all, and what fails in it is told and no more."""
    with trio.move_on_after(CLEAN_UP_STEP, shield=True) as scope:
        try:
            await step()
        except (ConfigError, OSError) as error:
            log.error("cleaning up: %s", error)
    if scope.cancelled_caught:
        log.error("cleaning up: a step takes more than %.1f s", CLEAN_UP_STEP)
