"""The container of `sulla demo`: a network namespace of its own behind a bridge in the guest, as a container engine makes it.

Run in the guest's namespaces. ``nft`` does the address translation where it is installed; without it the container is routed
(host-switch serves any source address) and its port is published by a relay in user space, as engines do then.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from typing import Any, Final

from sulla_trio.link import netns, tap

BRIDGE: Final = "demo-br0"
BRIDGE_ADDRESS: Final = "172.30.0.1"
ADDRESS: Final = "172.30.0.2"
PREFIX: Final = 24
PORT: Final = 8000

_RULES: Final = """
table ip sulla_demo {{
  chain prerouting {{
    type nat hook prerouting priority dstnat
    iifname != "{bridge}" tcp dport {published} dnat to {address}:{port}
    iifname != "{bridge}" udp dport {published} dnat to {address}:{port}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat
    ip saddr {address} oifname != "{bridge}" masquerade
  }}
}}
"""


def answer_for_ever() -> None:
    """The service: each TCP connection gets back what it said and who we are, each datagram likewise."""

    def talk(connection: socket.socket) -> None:
        with connection:
            said = bytearray()
            while chunk := connection.recv(1 << 16):
                said += chunk
            connection.sendall(f"container {ADDRESS}: ".encode() + said)

    def answer_datagrams() -> None:
        while True:
            data, peer = datagrams.recvfrom(1 << 16)
            datagrams.sendto(f"container {ADDRESS}: ".encode() + data, peer)

    listener = socket.create_server(("0.0.0.0", PORT), backlog=64)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", PORT))
    threading.Thread(target=answer_datagrams, daemon=True).start()
    while True:
        threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()


def be_container() -> None:
    """The container's process: a namespace, a word, the engine's word that the network is there, the service."""
    netns.unshare(netns.CLONE_NEWNET)
    print("made", flush=True)
    sys.stdin.readline()
    tap.bring_up_loopback()
    with _netlink() as route:
        index = route.link_lookup(ifname="eth0")[0]
        route.addr("add", index=index, address=ADDRESS, prefixlen=PREFIX)
        route.link("set", index=index, state="up")
        route.route("add", dst="default", gateway=BRIDGE_ADDRESS)
    print("up", flush=True)
    answer_for_ever()


def make_network(container: int) -> None:
    """Bridge, veth pair, addresses. Raises NetlinkError."""
    with _netlink() as route:
        route.link("add", ifname=BRIDGE, kind="bridge")
        bridge = route.link_lookup(ifname=BRIDGE)[0]
        route.addr("add", index=bridge, address=BRIDGE_ADDRESS, prefixlen=PREFIX)
        route.link("set", index=bridge, state="up")
        peer = {"ifname": "eth0", "net_ns_pid": container}
        route.link("add", ifname="demo-veth0", kind="veth", peer=peer)
        ours = route.link_lookup(ifname="demo-veth0")[0]
        route.link("set", index=ours, master=bridge, state="up")


def publish(port: int) -> str:
    """Publish the container's port as `port` of the guest; how."""
    nft = shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if nft is not None:
        rules = _RULES.format(bridge=BRIDGE, published=port, address=ADDRESS, port=PORT)
        done = subprocess.run([nft, "-f", "-"], input=rules, text=True, capture_output=True, check=False)
        if not done.returncode:
            return "NAT by nft"
    _start_user_space_relay(port)
    return "routed, its port relayed in user space (no nft)"


def _start_user_space_relay(port: int) -> None:
    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((ADDRESS, PORT)) as server:
            said = bytearray()
            while chunk := client.recv(1 << 16):
                said += chunk
            server.sendall(said)
            server.shutdown(socket.SHUT_WR)
            while chunk := server.recv(1 << 16):
                client.sendall(chunk)

    def accept() -> None:
        while True:
            threading.Thread(target=relay, args=(listener.accept()[0],), daemon=True).start()

    def pass_datagrams() -> None:
        while True:
            data, peer = datagrams.recvfrom(1 << 16)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.settimeout(2)
                server.connect((ADDRESS, PORT))
                server.send(data)
                try:
                    datagrams.sendto(server.recv(1 << 16), peer)
                except TimeoutError:
                    pass

    listener = socket.create_server(("0.0.0.0", port), backlog=64)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", port))
    for loop in (accept, pass_datagrams):
        threading.Thread(target=loop, daemon=True).start()


def _netlink() -> Any:
    from pyroute2.iproute.linux import IPRoute

    return IPRoute()


def main() -> None:
    """``be`` the container, or be the engine that has started one, publish it as port ``N``, and stay."""
    if sys.argv[1] == "be":
        be_container()
    command = [sys.executable, "-P", "-m", "sulla_trio.demo.container", "be"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        container.stdout.readline()
        make_network(container.pid)
        container.stdin.write("network\n")
        container.stdin.flush()
        container.stdout.readline()
        print(container.pid, publish(int(sys.argv[1])), flush=True)
        container.wait()


if __name__ == "__main__":
    main()
