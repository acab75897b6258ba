"""What `sulla demo` runs inside its VM: one action by its name, its outcome as one JSON object on standard output.

In the VM's default network namespace it plays another distribution, whose way to published ports is wsl-proxy; in the guest's
namespaces it plays the guest agent, which publishes ports first with host-switch and then with wsl-proxy.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sulla_trio.demo.vm import INIT_PID_FILE

GATEWAY: Final = "192.168.127.1"
GUEST: Final = "192.168.127.2"
HOST: Final = "192.168.127.254"
PEER: Final = "192.168.143.1"
"""The guest's end of the veth pair."""
WSL_PROXY: Final = "/run/wsl-proxy.sock"
TIMEOUT: Final = 20.0
SIOCGIFADDR: Final = 0x8915
SIOCGIFHWADDR: Final = 0x8927


def find_init() -> int:
    """The guest's PID 1 as the VM sees it: the child, called /sbin/init, of the process in /run/wsl-init.pid.

    Raises:
        ProcessLookupError: there is none (yet).
    """
    parent = INIT_PID_FILE.read_text()
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in children:
        if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"/sbin/init\0"):
            return int(child)
    raise ProcessLookupError(f"process {parent} has no child /sbin/init")


def enter_guest(command: list[str]) -> None:
    """Become `command` in the guest's namespaces, as wsl-exec does."""
    os.execvp("nsenter", ["nsenter", "-n", "-p", "-m", "-t", str(find_init()), *command])


def describe_init() -> dict[str, Any]:
    """Whether the guest's PID 1 is what it must be."""
    init = find_init()
    status = Path(f"/proc/{init}/status").read_text()
    names = ("net", "pid", "mnt")
    inside = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
    return {
        "pid_inside": int(inside),
        "own_namespaces": [
            name for name in names if os.readlink(f"/proc/{init}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        ],
        "interfaces": [
            line.split(":")[0].strip() for line in Path(f"/proc/{init}/net/dev").read_text().splitlines()[2:]
        ],
    }


def links() -> dict[str, Any]:
    """The names of this network namespace's interfaces."""
    return {"links": [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]}


def address() -> dict[str, Any]:
    """The address of eth0, which makes it ours, and its MAC."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            found = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("16s24x", b"eth0"))
            mac = fcntl.ioctl(probe, SIOCGIFHWADDR, struct.pack("16s24x", b"eth0"))
        except OSError as error:
            return {"error": os.strerror(error.errno or 0)}
    return {
        "address": socket.inet_ntoa(found[20:24]),
        "mac": mac[18:24].hex(":"),
        "index": socket.if_nametoindex("eth0"),
    }


def reach(address: str, port: int, text: str, protocol: str = "tcp") -> dict[str, Any]:
    """Say `text` to a port, and what it answers until it has no more to say."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    started = time.perf_counter()
    try:
        with socket.socket(socket.AF_INET, kind) as client:
            client.settimeout(TIMEOUT)
            client.connect((address, port))
            client.sendall(text.encode())
            if protocol == "tcp":
                client.shutdown(socket.SHUT_WR)
            reply = bytearray()
            while chunk := client.recv(1 << 16):
                reply += chunk
                if protocol != "tcp":
                    break
    except OSError as error:
        return {"error": os.strerror(error.errno) if error.errno else str(error)}
    return {"reply": reply.decode(), "ms": (time.perf_counter() - started) * 1000}


def download(port: int) -> dict[str, Any]:
    """GET /data from the host's alias: length, hash, seconds."""
    connection = http.client.HTTPConnection(HOST, port, timeout=90)
    started = time.perf_counter()
    connection.request("GET", "/data")
    response = connection.getresponse()
    digest, size = hashlib.sha256(), 0
    while chunk := response.read(1 << 20):
        digest.update(chunk)
        size += len(chunk)
    return {"sha256": digest.hexdigest(), "size": size, "seconds": time.perf_counter() - started}


def route_and_download(port: int) -> dict[str, Any]:
    """As another distribution that has been given a route to the host's alias through the guest."""
    from pyroute2.iproute.linux import IPRoute

    with IPRoute() as route:
        route.route("replace", dst=f"{HOST}/32", gateway=PEER)
    return download(port)


def publish(port: int, container_port: int, *, remove: bool = False, local: int = 0) -> dict[str, Any]:
    """As the guest agent: host-switch first, then wsl-proxy, whose closing of the connection is its answer."""
    verb = "unexpose" if remove else "expose"
    statuses = {}
    for protocol in ("tcp", "udp"):
        body = {"local": f"127.0.0.1:{local or port}", "remote": f"{GUEST}:{port}", "protocol": protocol}
        connection = http.client.HTTPConnection(GATEWAY, 80, timeout=TIMEOUT)
        connection.request("POST", f"/services/forwarder/{verb}", json.dumps(body))
        response = connection.getresponse()
        statuses[protocol] = f"{response.status} {response.read().decode().strip()}".strip()
    binding = [{"HostIp": "0.0.0.0", "HostPort": str(port)}]
    mapping = {
        "remove": remove,
        "ports": {f"{container_port}/tcp": binding, f"{container_port}/udp": binding},
        "connectAddrs": None,
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(TIMEOUT)
        client.connect(WSL_PROXY)
        client.sendall(json.dumps(mapping).encode() + b"\n")
        answer = client.recv(1)
    return {"statuses": statuses, "wsl_proxy": answer.decode()}


ACTIONS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "address": address,
    "links": links,
    "describe_init": describe_init,
    "reach": reach,
    "download": download,
    "route_and_download": route_and_download,
    "publish": publish,
}


def main() -> None:
    """``enter COMMAND...``, or ``ACTION JSON`` with the action's arguments."""
    name, *rest = sys.argv[1:]
    if name == "enter":
        enter_guest(rest)
    print(json.dumps(ACTIONS[name](**json.loads(rest[0]))))


if __name__ == "__main__":
    main()
