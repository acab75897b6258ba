"""The order of one run: start-up, idle, then throughput with the contestants taking turns."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from bench_lib import core, measure, peers, report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/bench", description="Ours and the peers, side by side, as ratios.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="length of one iperf3 run (default 5)")
    parser.add_argument("--idle-seconds", type=float, default=20)
    parser.add_argument("--quick", action="store_true", help="one repeat of one second: does it run at all")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="directory (default docs)")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.repeats, arguments.seconds, arguments.idle_seconds = 1, 1, 2
    return arguments


def throughput(
    pairs: list[tuple[peers.Peer, peers.Peer]], repeats: int, seconds: float
) -> dict[tuple[str, str], measure.Throughput]:
    """Every contestant in both directions, in turn, `repeats` times."""
    contestants = [peer for pair in pairs for peer in pair]
    rows = {(peer.label, direction): measure.Throughput() for peer in contestants for direction in ("up", "down")}
    with ExitStack() as stack:
        port = stack.enter_context(measure.iperf3_server())
        guests = {}
        for peer in contestants:
            guests[peer.label] = guest = peer.start(peer.mtu)
            stack.callback(guest.close)
            guest.wait_ready()
        for repeat in range(repeats):
            for direction in ("up", "down"):
                for peer in contestants:
                    row = rows[peer.label, direction]
                    measure.one_stream(peer, guests[peer.label], port, seconds, down=direction == "down", into=row)
                    print(
                        f"{repeat + 1}/{repeats}  {peer.label:24} {direction:5} {row.gbit_per_s[-1]:6.2f} Gbit/s",
                        flush=True,
                    )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["core"]:
        core.main(sys.argv[2:])
        return
    arguments = parse()
    load = os.getloadavg()[0]
    pairs = [
        (peers.ours(65000), peers.slirp4netns(65520)),
        (peers.ours(1500), peers.slirp4netns(1500)),
    ]
    small = pairs[1]
    start_s = {peer.label: [measure.first_ping_s(peer) for _ in range(arguments.repeats)] for peer in small}
    for label, values in start_s.items():
        print(f"start  {label:24} {max(values):6.2f} s at worst", flush=True)
    idle = {}
    for peer in small:
        idle[peer.label] = row = measure.idle(peer, arguments.idle_seconds)
        print(f"idle   {peer.label:24} {row.kb_per_connection:6.1f} KB per connection", flush=True)
    results = report.Results(
        pairs=pairs,
        throughput=throughput(pairs, arguments.repeats, arguments.seconds),
        start_s=start_s,
        idle=idle,
        seconds=arguments.seconds,
        repeats=arguments.repeats,
        idle_seconds=arguments.idle_seconds,
        load=load,
    )
    report.write(results, arguments.output)
    print(f"written: {arguments.output / 'benchmarks.md'}, {arguments.output / 'benchmarks.json'}")


if __name__ == "__main__":
    main()
