"""Constants that cross a process boundary, frozen configuration, and pure parsing of what people type.

Everything here is a value or a function of its arguments: no environment, no clock, no file. Addresses are `bytes`
of 4 (16 for IPv6 one day), MACs `bytes` of 6.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sulla_trio.errors import ConfigError

GATEWAY_MAC: Final = bytes.fromhex("5a94efe40cdd")
GUEST_MAC: Final = bytes.fromhex("5a94efe40cee")
BROADCAST_MAC: Final = b"\xff" * 6
DEFAULT_SUBNET: Final = "192.168.127.0/24"
DEFAULT_MTU: Final = 1500
MIN_MTU: Final = 576  # RFC 791: every host takes a datagram of 576 bytes
MAX_MTU: Final = 65_520  # u16 frame length of the legacy framing, less the Ethernet header, rounded down to 16
TAP_NAME: Final = "eth0"
UDP_FILTERS: Final = ("address-and-port-dependent", "endpoint-independent")
"""RFC 4787 section 5: only from where the guest has sent to, or from anybody. The first is the default."""
DEFAULT_ZONES: Final = (
    "rancher-desktop.internal.",
    "docker.internal.",
    "sulla-desktop.internal.",
    "containers.internal.",
)


def format_ip(address: bytes) -> str:
    """Dotted text of a 4-byte address (or RFC 5952 text of a 16-byte one)."""
    if len(address) == 4:
        return "%d.%d.%d.%d" % tuple(address)
    return str(ipaddress.ip_address(address))


def parse_ip(text: str) -> bytes:
    """Bytes of a literal IPv4 address.

    Raises:
        ConfigError: `text` is not one.
    """
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError:
        raise ConfigError(f"invalid IPv4 address: {text}") from None


def format_mac(mac: bytes) -> str:
    """Lower-case colon text of a MAC."""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """Bytes of a colon- or dash-separated MAC, any case.

    Raises:
        ConfigError: `text` is not a MAC.
    """
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        raise ConfigError(f"invalid MAC address: {text} (want xx:xx:xx:xx:xx:xx)")
    return bytes.fromhex(re.sub("[:-]", "", text))


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The virtual network: who is who on it. Build it with `network_config`."""

    subnet: ipaddress.IPv4Network
    gateway_ip: bytes
    guest_ip: bytes
    host_ip: bytes
    """The host alias (.254): answered by the gateway's MAC, NATed to the host's 127.0.0.1."""
    mtu: int = DEFAULT_MTU
    """L3 MTU in bytes: TCP MSS is `mtu` - 40, IPv4 fragments above it, DHCP option 26."""
    gateway_mac: bytes = GATEWAY_MAC
    guest_mac: bytes = GUEST_MAC
    zones: tuple[str, ...] = DEFAULT_ZONES
    search_domains: tuple[str, ...] = ()
    host_loopback: bool = True
    """Whether `host_ip` reaches the host's 127.0.0.1 at all."""
    host_loopback_ports: frozenset[int] | None = None
    """Ports of 127.0.0.1 that `host_ip` reaches; None: all."""
    deny_out: tuple[ipaddress.IPv4Network, ...] = field(default=())
    """Networks that the guest may not reach, beside the never-dialled table."""
    static_leases: tuple[tuple[bytes, bytes], ...] = ()
    """(MAC, address) that DHCP gives to that MAC alone, for ever; the guest's own is among them unless its MAC is named."""
    udp_filter: str = UDP_FILTERS[0]
    """Whose datagrams a guest's UDP mapping lets in: one of `UDP_FILTERS`."""

    @property
    def netmask(self) -> bytes:
        return self.subnet.netmask.packed

    @property
    def virtual_ips(self) -> tuple[bytes, ...]:
        """Addresses the gateway answers ARP for."""
        return (self.gateway_ip, self.host_ip)

    def __contains__(self, address: bytes) -> bool:
        """Whether `address` lies in the subnet."""
        mask = int(self.subnet.netmask)
        return int.from_bytes(address, "big") & mask == int(self.subnet.network_address)


def network_config(subnet: str = DEFAULT_SUBNET, mtu: int = DEFAULT_MTU) -> NetworkConfig:
    """The host-switch addressing of `subnet`: first three octets of the address as given plus .1, .2 and .254.

    Source: specs/daemons.md section 5. The prefix length is only the mask.

    Raises:
        ConfigError: not an IPv4 CIDR, smaller than /29, one of the three addresses falls outside it or is its network
            or broadcast address, or `mtu` is out of range.
    """
    address_text, slash, _ = subnet.partition("/")
    try:
        if not slash:
            raise ValueError(subnet)
        network = ipaddress.ip_network(subnet, strict=False)
    except ValueError:
        raise ConfigError(
            f"validating subnet: invalid CIDR address: {subnet} (want for example {DEFAULT_SUBNET})"
        ) from None
    if not isinstance(network, ipaddress.IPv4Network):
        raise ConfigError(f"validating subnet: {subnet} is IPv6; only IPv4 subnets are supported")
    if network.prefixlen > 29:
        raise ConfigError(f"validating subnet: {subnet} is too small; a /29 is the smallest")
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise ConfigError(f"mtu {mtu} is out of range; use {MIN_MTU} to {MAX_MTU}")
    prefix = ipaddress.IPv4Address(address_text).packed[:3]
    gateway, guest, host = (prefix + bytes([last]) for last in (1, 2, 254))
    for ip in (gateway, guest, host):
        at = ipaddress.IPv4Address(ip)
        if at not in network or at in (network.network_address, network.broadcast_address):
            raise ConfigError(f"validating subnet: {at} is not a usable address of {subnet}; use a /24 or larger")
    return NetworkConfig(network, gateway, guest, host, mtu)


def parse_static_leases(texts: Iterable[str], network: NetworkConfig) -> tuple[tuple[bytes, bytes], ...]:
    """Each ``MAC=IPv4``, as `NetworkConfig.static_leases`.

    Raises:
        ConfigError: not of that form, an address that no guest can have, or one address or MAC twice.
    """
    leases: dict[bytes, bytes] = {}
    for text in texts:
        mac_text, equals, ip_text = text.partition("=")
        if not equals:
            raise ConfigError(f"static lease {text}: want MAC=IPv4, such as 52:54:00:00:00:01=192.168.127.10")
        mac, ip = parse_mac(mac_text), parse_ip(ip_text)
        if mac[0] & 1 or mac in (bytes(6), network.gateway_mac):
            raise ConfigError(f"static lease {text}: no guest can have this MAC address")
        ends = (network.subnet.network_address.packed, network.subnet.broadcast_address.packed)
        if ip not in network or ip in (*ends, *network.virtual_ips):
            raise ConfigError(f"static lease {text}: no guest can have this address in {network.subnet}")
        if mac in leases or ip in leases.values():
            raise ConfigError(f"static lease {text}: the MAC or the address has a static lease already")
        leases[mac] = ip
    if network.guest_mac not in leases and network.guest_ip in leases.values():
        raise ConfigError(
            f"static lease of {format_ip(network.guest_ip)}: it is {format_mac(network.guest_mac)}'s; give that another one too"
        )
    return tuple(leases.items())


@dataclass(frozen=True, slots=True)
class PortForward:
    """One static forward: `local` on the host to `remote` in the virtual network, both ``IPv4:port`` text."""

    local: str
    remote: str
    protocol: str = "tcp"


def _check_endpoint(text: str) -> None:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ConfigError(f"address {text}: missing port in address")
    if ":" in host:
        raise ConfigError(f"address {text}: too many colons in address")
    if not re.fullmatch(r"[+-]?[0-9]+", port):
        raise ConfigError(f'strconv.Atoi: parsing "{port}": invalid syntax')
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"invalid port number provided: {port}")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"invalid IP address provided: {host}") from None


def parse_port_forward(text: str) -> PortForward:
    """``HostIP:Port=GuestIP:Port``, with an optional ``udp:`` or ``tcp:`` in front.

    Source: specs/daemons.md section 5 (texts of the errors); the prefix is ours.

    Raises:
        ConfigError: not of that form; the text names the value.
    """
    protocol, value = "tcp", text
    for name in ("tcp", "udp"):
        if text.startswith(name + ":"):
            protocol, value = name, text[len(name) + 1 :]
    local, equals, remote = value.partition("=")
    if not equals or "=" in remote:
        raise ConfigError(f'input ["{text}"] not in expected format: HostIP:Port=GuestIP:Port')
    _check_endpoint(local)
    _check_endpoint(remote)
    return PortForward(local, remote, protocol)
