"""The demo's guest: runs on the user-space network and shows each of its services working. Standard library only.

Started by demo_host.py with one argument, a JSON object of ports on the host's 127.0.0.1. What it needs done on the
host (connect to a forwarded port, say) it asks for over HTTP, through the network that it is showing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import json
import os
import random
import socket
import statistics
import struct
import sys
import threading
import time
from typing import Any

from sulla_trio.demo.report import Report, expect

GATEWAY = "192.168.127.1"
GUEST = "192.168.127.2"
HOST = "192.168.127.254"
TAP = "eth0"
TIMEOUT = 20.0
SIOCGIFADDR, SIOCGIFNETMASK, SIOCGIFMTU, SIOCGIFHWADDR = 0x8915, 0x891B, 0x8921, 0x8927
CROWD = 200


def receive_all(connection: socket.socket) -> bytes:
    """Everything up to the peer's FIN."""
    received = bytearray()
    while chunk := connection.recv(1 << 16):
        received += chunk
    return bytes(received)


def serve_echo(port: int) -> None:
    """TCP and UDP servers on `port` that answer each chunk with ``guest:`` in front, in background threads."""

    def talk(connection: socket.socket) -> None:
        with connection:
            while chunk := connection.recv(1 << 16):
                connection.sendall(b"guest:" + chunk)

    def accept() -> None:
        while True:
            threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    def answer() -> None:
        while True:
            data, peer = datagrams.recvfrom(1 << 16)
            datagrams.sendto(b"guest:" + data, peer)

    listener = socket.create_server(("0.0.0.0", port), backlog=64)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", port))
    for loop in (accept, answer):
        threading.Thread(target=loop, daemon=True).start()


class Guest:
    """The steps, in the order shown."""

    def __init__(self, ports: dict[str, Any]) -> None:
        self.ports = ports
        self.payload = bytearray(ports["size"])

    def ask_host(self, **request: Any) -> Any:
        """Have the host do something: the answer of demo_host.py's `HostSide`."""
        connection = http.client.HTTPConnection(HOST, self.ports["http"], timeout=90)
        connection.request("POST", "/do", json.dumps(request))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    def call_gateway(self, method: str, path: str, body: dict[str, str] | None = None) -> tuple[int, str]:
        """One request to the API inside the network."""
        connection = http.client.HTTPConnection(GATEWAY, 80, timeout=TIMEOUT)
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        status, text = response.status, response.read().decode()
        connection.close()
        return status, text

    # -- the network itself

    def address(self) -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:

            def ask(request: int) -> bytes:
                return fcntl.ioctl(probe, request, struct.pack("16s240x", TAP.encode()))[16:]

            address, netmask = (socket.inet_ntoa(ask(request)[4:8]) for request in (SIOCGIFADDR, SIOCGIFNETMASK))
            (mtu,) = struct.unpack_from("i", ask(SIOCGIFMTU))
            mac = ask(SIOCGIFHWADDR)[2:8].hex(":")
        with open("/proc/net/route") as table:
            routes = [line.split() for line in table][1:]
        gateways = [
            socket.inet_ntoa(struct.pack("=I", int(route[2], 16))) for route in routes if route[1] == "00000000"
        ]
        expect((address, gateways) == (GUEST, [GATEWAY]), f"address {address}, default routes {gateways}")
        expect(mtu == self.ports["mtu"], f"MTU {mtu}")
        return f"{address} netmask {netmask} gateway {gateways[0]} MTU {mtu} MAC {mac}"

    def ping(self, target: str) -> str:
        try:
            pinger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
            raw = False
        except PermissionError:
            pinger = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            raw = True
        times = []
        with pinger:
            pinger.settimeout(2)
            pinger.connect((target, 0))
            for sequence in range(1, 6):
                payload = os.urandom(56)
                started = time.perf_counter()
                pinger.send(echo_request(sequence, payload))
                reply = pinger.recv(2048)
                times.append(time.perf_counter() - started)
                reply = reply[20:] if raw else reply
                expect(reply[0] == 0 and reply[6:8] == sequence.to_bytes(2) and reply[8:] == payload, reply.hex())
        return f"{len(times)} of 5 answered by {target}, median {statistics.median(times) * 1000:.2f} ms"

    # -- names

    def dns_address(self, transport: str) -> str:
        started = time.perf_counter()
        rcode, addresses = resolve("host.docker.internal", transport)
        took = time.perf_counter() - started
        expect((rcode, addresses) == (0, [HOST]), f"rcode {rcode}, {addresses}")
        return f"host.docker.internal is {addresses[0]}, {took * 1000:.1f} ms"

    def dns_no_such_name(self) -> str:
        outcomes = [resolve("no-such-name.docker.internal", transport) for transport in ("udp", "tcp")]
        expect(outcomes == [(3, [])] * 2, outcomes)
        return "no-such-name.docker.internal is NXDOMAIN over both"

    def dns_libc(self) -> str:
        found = socket.gethostbyname("gateway.docker.internal")
        expect(found == GATEWAY, found)
        return f"resolv.conf leads to us: gateway.docker.internal is {found}"

    # -- out

    def download(self) -> str:
        connection = http.client.HTTPConnection(HOST, self.ports["http"], timeout=TIMEOUT)
        started = time.perf_counter()
        connection.request("GET", "/data")
        response = connection.getresponse()
        view, filled = memoryview(self.payload), 0
        while filled < len(view) and (count := response.readinto(view[filled : filled + (1 << 20)])):
            filled += count
        took = time.perf_counter() - started
        connection.close()
        expect(filled == len(view), f"{filled} of {len(view)} bytes")
        return self.equal_and_rate(hashlib.sha256(view).hexdigest(), took)

    def upload(self) -> str:
        connection = http.client.HTTPConnection(HOST, self.ports["http"], timeout=90)
        started = time.perf_counter()
        connection.request("POST", "/upload", self.payload)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return self.equal_and_rate(answer["sha256"], answer["at"] - started)

    def equal_and_rate(self, digest: str, took: float) -> str:
        expect(digest == self.ports["sha256"], f"sha256 {digest} and not {self.ports['sha256']}")
        mebibytes = len(self.payload) >> 20
        return f"{mebibytes} MiB, sha256 equal ({digest[:12]}), {len(self.payload) * 8 / took / 1e9:.2f} Gbit/s"

    def udp_echo(self) -> str:
        sizes = [1, 512, 1400, 1473, 8000, 30000]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((HOST, self.ports["udp"]))
            started = time.perf_counter()
            for size in sizes * 20:
                data = os.urandom(size)
                client.send(data)
                expect(client.recv(1 << 16) == data, f"a datagram of {size} bytes came back changed")
            took = time.perf_counter() - started
        count = len(sizes) * 20
        return f"{count} datagrams of {sizes[0]} to {sizes[-1]} bytes, {took / count * 1000:.2f} ms each"

    def half_close(self) -> str:
        data = random.Random(1).randbytes(1 << 20)
        with socket.create_connection((HOST, self.ports["tail"]), TIMEOUT) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            answer = receive_all(client)
        expect(answer == hashlib.sha256(data).digest() + data, f"{len(answer)} bytes back")
        return f"FIN sent first, then {len(answer)} bytes of answer received, all right"

    def refused(self) -> str:
        started = time.perf_counter()
        try:
            socket.create_connection((HOST, self.ports["closed"]), TIMEOUT).close()
        except ConnectionRefusedError as error:
            return f"{errno.errorcode[error.errno or 0]} in {(time.perf_counter() - started) * 1000:.1f} ms"
        raise ConnectionError("a connection to a closed port was accepted")

    def crowd(self) -> str:
        started = time.perf_counter()
        crowd = [socket.create_connection((HOST, self.ports["tail"]), TIMEOUT) for _ in range(CROWD)]
        opened = time.perf_counter() - started
        for index, client in enumerate(crowd):
            client.sendall(b"%d" % index)
            client.shutdown(socket.SHUT_WR)
        for index, client in enumerate(crowd):
            with client:
                expect(receive_all(client)[32:] == b"%d" % index, f"connection {index} got another's answer")
        return f"{CROWD} open at once, each its own answer, {opened / CROWD * 1000:.2f} ms to open one"

    # -- in

    def static_forward(self, protocol: str) -> str:
        answer = self.ask_host(do="reach", port=self.ports[f"static_{protocol}"], text="hello", protocol=protocol)
        expect(answer.get("reply") == "guest:hello", answer)
        return f"127.0.0.1:{self.ports[f'static_{protocol}']} on the host reached us, {answer['ms']:.1f} ms"

    def expose(self) -> str:
        local = f"127.0.0.1:{self.ports['exposed']}"
        status, text = self.call_gateway(
            "POST", "/services/forwarder/expose", {"local": local, "remote": f":{self.ports['guest']}"}
        )
        expect((status, text) == (200, ""), f"expose said {status} {text!r}")
        status, text = self.call_gateway("GET", "/services/forwarder/all")
        row = {"local": local, "remote": f"{GUEST}:{self.ports['guest']}", "protocol": "tcp"}
        expect(status == 200 and row in json.loads(text), f"all said {status} {text!r}")
        answer = self.ask_host(do="reach", port=self.ports["exposed"], text="hi", protocol="tcp")
        expect(answer.get("reply") == "guest:hi", answer)
        return f"{local} -> {row['remote']}, reached from outside in {answer['ms']:.1f} ms"

    def expose_twice(self) -> str:
        local = f"127.0.0.1:{self.ports['exposed']}"
        status, text = self.call_gateway(
            "POST", "/services/forwarder/expose", {"local": local, "remote": f":{self.ports['guest']}"}
        )
        expect(status == 500 and text.startswith("proxy already running"), f"{status} {text!r}")
        return f"{status} {text.strip()}"

    def unexpose(self) -> str:
        port = self.ports["exposed"]
        answer = self.ask_host(do="hold", port=port, text="before")
        expect(answer.get("reply") == "guest:before", answer)
        status, text = self.call_gateway("POST", "/services/forwarder/unexpose", {"local": f"127.0.0.1:{port}"})
        expect((status, text) == (200, ""), f"unexpose said {status} {text!r}")
        answer = self.ask_host(do="held", text="after")
        expect(answer.get("reply") == "guest:after", f"the live connection: {answer}")
        answer = self.ask_host(do="reach", port=port, text="new", protocol="tcp")
        expect(answer.get("error") == "ECONNREFUSED", f"a new connection: {answer}")
        return "the live connection goes on, a new one is refused"

    def run(self, report: Report) -> None:
        report.step("address by DHCP", self.address)
        report.step("ping the gateway", lambda: self.ping(GATEWAY))
        report.step("ping the host's alias", lambda: self.ping(HOST))
        report.step("DNS over UDP", lambda: self.dns_address("udp"))
        report.step("DNS over TCP", lambda: self.dns_address("tcp"))
        report.step("DNS, no such name", self.dns_no_such_name)
        report.step("DNS through libc", self.dns_libc)
        report.step("download from the host", self.download)
        report.step("upload to the host", self.upload)
        report.step("UDP echo", self.udp_echo)
        report.step("half-close", self.half_close)
        report.step("refused port", self.refused)
        report.step("many connections", self.crowd)
        report.step("static forward, TCP", lambda: self.static_forward("tcp"))
        report.step("static forward, UDP", lambda: self.static_forward("udp"))
        report.step("expose from inside", self.expose)
        report.step("expose it again", self.expose_twice)
        report.step("unexpose", self.unexpose)


def echo_request(sequence: int, payload: bytes) -> bytes:
    """An ICMP echo request with its checksum (RFC 792); the kernel fills in the identifier of a datagram socket."""
    message = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, sequence) + payload
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]


def resolve(name: str, transport: str) -> tuple[int, list[str]]:
    """Ask the gateway for the A records of `name`: (response code, addresses). RFC 1035 section 4."""
    identifier = random.randrange(1 << 16)
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!6H", identifier, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 1, 1)
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(5)
        client.connect((GATEWAY, 53))
        if transport == "tcp":
            client.sendall(struct.pack("!H", len(query)) + query)
            stream = client.makefile("rb")
            (length,) = struct.unpack("!H", stream.read(2))
            answer = stream.read(length)
        else:
            client.send(query)
            answer = client.recv(4096)
    got, flags, _, count, _, _ = struct.unpack_from("!6H", answer)
    expect(got == identifier and flags & 0x8000, answer.hex())
    addresses, at = [], len(query)  # the question comes back as it was sent
    for _ in range(count):
        while answer[at] and answer[at] < 0xC0:
            at += answer[at] + 1
        at += 2 if answer[at] else 1
        record_type, _, _, length = struct.unpack_from("!HHIH", answer, at)
        at += 10 + length
        if record_type == 1:
            addresses.append(socket.inet_ntoa(answer[at - length : at]))
    return flags & 0xF, addresses


def main() -> int:
    ports = json.loads(sys.argv[1])
    report = Report()
    guest = Guest(ports)
    serve_echo(ports["guest"])
    guest.ask_host(do="begin")
    guest.run(report)
    guest.ask_host(do="observe")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
