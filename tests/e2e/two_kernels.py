"""Two real TCP stacks joined by our segmentation one way and our merging the other. Run under ``unshare -n``.

The left one may send super-frames and leave checksums out; the right one is behind a link without offloads. The client on the
left sends to the right and gets as much back; what each side received, and what the kernels counted, is printed as JSON.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from typing import Any

from sulla_trio.netstack import merging, segmentation
from sulla_trio.wire import virtio

LEFT, RIGHT, PORT = "10.9.0.1", "10.9.0.2", 7000
SIZE = 8 << 20
MTU = 1500
DATAGRAM, DATAGRAMS = 1200, 20
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETLE = 0x400454CA, 0x400454D0, 0x400454DC
IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000
UDP_SEGMENT = 103
MASKS = (0x6F, 0x0F, 0x07, 0x03, 0x01, 0)


def pattern(seed: int) -> bytes:
    return hashlib.shake_256(bytes((seed,))).digest(SIZE)


def open_tap(name: str, masks: tuple[int, ...]) -> tuple[int, int]:
    """Descriptor, and the first of `masks` that the kernel takes."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP_NO_PI_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETVNETLE, struct.pack("i", 1))
    for mask in masks:
        try:
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, mask)
        except OSError:
            continue
        return descriptor, mask
    raise OSError("no offload mask at all")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def bring_up(name: str, address: str) -> None:
    ip("address", "add", f"{address}/24", "dev", name)
    ip("link", "set", name, "mtu", str(MTU), "up")


def quiet() -> None:
    """No router solicitations among the frames."""
    with open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as file:
        file.write("1")


def tcp_counters() -> dict[str, int]:
    with open("/proc/net/snmp") as file:
        names, values = (line.split()[1:] for line in file if line.startswith("Tcp:"))
    return {name: int(value) for name, value in zip(names, values, strict=True)}


def receive_all(sock: socket.socket) -> str:
    digest = hashlib.sha256()
    while piece := sock.recv(1 << 18):
        digest.update(piece)
    return digest.hexdigest()


def serve() -> None:
    """The right side: answers one connection with its own pattern, then counts datagrams."""
    quiet()
    print("ready", flush=True)
    sys.stdin.readline()
    bring_up("right", RIGHT)
    with socket.create_server((RIGHT, PORT)) as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((RIGHT, PORT))
        print("listening", flush=True)
        connection, _ = listener.accept()
        with connection:
            received = receive_all(connection)
            connection.sendall(pattern(2))
        datagrams.settimeout(20)
        got = sorted(datagrams.recv(2000).hex() for _ in range(DATAGRAMS))
    print(json.dumps({"received": received, "datagrams": got, "tcp": tcp_counters()}), flush=True)


class Bridge:
    """Carries frames until `client_done` is set and the right side has told what it got."""

    def __init__(self, left: int, mask: int, right: int, damage: bool) -> None:
        self.left, self.mask, self.right, self.damage = left, mask, right, damage
        self.seen: dict[str, Any] = dict.fromkeys(
            ("super_frames", "uso_frames", "trains", "merged_frames", "longest", "damaged"), 0
        )

    def run(self, stop: int) -> None:
        while True:
            readable, _, _ = select.select([self.left, self.right, stop], [], [], 30)
            if not readable or stop in readable:
                return
            if self.left in readable:
                self.left_to_right()
            if self.right in readable:
                self.right_to_left()

    def left_to_right(self) -> None:
        for packet in self.batch(self.left):
            header = virtio.parse(packet, offloads=self.mask, mtu=MTU)
            self.seen["super_frames"] += header.gso_type & 0x7F == virtio.GSO_TCPV4
            self.seen["uso_frames"] += header.gso_type == virtio.GSO_UDP_L4
            for headers, payload in segmentation.for_plain_link(packet[virtio.HEADER_LENGTH :], header):
                self.seen["longest"] = max(self.seen["longest"], len(headers) + len(payload))
                os.writev(self.right, (virtio.PLAIN_BYTES, headers, payload))

    def right_to_left(self) -> None:
        frames = [packet[virtio.HEADER_LENGTH :] for packet in self.batch(self.right)]
        if self.damage and len(frames) > 8 and min(len(frame) for frame in frames[:8]) == MTU + 14:
            frames[5][1000] ^= 0xFF
            self.damage = False
            self.seen["damaged"] += 1
        for write in merging.merge(frames):
            self.seen["trains"] += len(write) > 2
            self.seen["merged_frames"] += len(write) - 1
            os.writev(self.left, write)

    @staticmethod
    def batch(tap: int) -> list[memoryview]:
        packets = []
        while len(packets) < 64:
            buffer = bytearray(65_600)
            try:
                length = os.readv(tap, (buffer,))
            except BlockingIOError:
                break
            packets.append(memoryview(buffer)[:length])
        return packets


def talk(result: dict[str, Any]) -> None:
    """The client's half of the conversation, in a thread: the bridge must run meanwhile."""
    with socket.create_connection((RIGHT, PORT)) as sock:
        sock.sendall(pattern(1))
        sock.shutdown(socket.SHUT_WR)
        result["received"] = receive_all(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_UDP, UDP_SEGMENT, DATAGRAM)
        sock.connect((RIGHT, PORT))
        sock.send(b"".join(bytes((number,)) * DATAGRAM for number in range(DATAGRAMS)))


def main(damage: bool) -> None:
    quiet()
    left, mask = open_tap("left", MASKS)
    right, _ = open_tap("right", (0,))
    command = ["unshare", "-n", sys.executable, __file__, "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdout.readline()
        ip("link", "set", "right", "netns", str(server.pid))
        server.stdin.write("go\n")
        server.stdin.flush()
        server.stdout.readline()
        bring_up("left", LEFT)
        result: dict[str, Any] = {}
        bridge = Bridge(left, mask, right, damage)
        client = threading.Thread(target=talk, args=(result,))
        client.start()
        bridge.run(server.stdout.fileno())
        client.join(10)
        result["tcp"] = tcp_counters()
        answer = json.loads(server.stdout.readline())
    sent = {"left": hashlib.sha256(pattern(1)).hexdigest(), "right": hashlib.sha256(pattern(2)).hexdigest()}
    print(json.dumps({"mask": mask, "sent": sent, "left": result, "right": answer, "bridge": bridge.seen}))


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else main(sys.argv[1] == "damage")
