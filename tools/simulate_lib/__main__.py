"""The command line: see tools/simulate --help."""

from __future__ import annotations

import argparse
import sys

from tools.simulate_lib import goodput
from tools.simulate_lib.transfer import PROFILES, simulate
from tools.simulate_lib.wire_pair import Profile


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(text)
    return value


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/simulate",
        description="Two stacks of ours on a bad wire, on a virtual clock: bytes both ways, a FIN from each. The exit status "
        "is 1 if anything differs, and the seed says how to see it again.",
    )
    parser.add_argument("--seed", type=int, default=0, help="first seed (default 0)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many, counting up (default 1)")
    parser.add_argument(
        "--profile", choices=[*PROFILES, "all"], help="a named wire, or all of them, instead of the flags below"
    )
    parser.add_argument("--loss", type=probability, default=0.0, metavar="P", help="probability that a frame is lost")
    parser.add_argument("--reorder", type=probability, default=0.0, metavar="P", help="that it is overtaken")
    parser.add_argument("--dup", type=probability, default=0.0, metavar="P", help="that it comes twice")
    parser.add_argument("--corrupt", type=probability, default=0.0, metavar="P", help="that a bit of it is wrong")
    parser.add_argument("--delay", type=positive, default=0.001, metavar="S", help="seconds one way (default 0.001)")
    parser.add_argument("--jitter", type=positive, default=0.0, metavar="S", help="seconds more, at random")
    parser.add_argument(
        "--rate", type=positive, default=0.0, metavar="BPS", help="bits per second each way (default: no limit)"
    )
    parser.add_argument(
        "--buffer", type=int, default=0, metavar="BYTES", help="that may wait for the rate (default: no bound)"
    )
    parser.add_argument("--size", type=int, default=60_000, metavar="BYTES", help="each way (default 60000)")
    parser.add_argument("--mtu", type=int, default=0, help="68 to 65000 (default: 576, 1500 and 9000 in turn)")
    parser.add_argument("--goodput", action="store_true", help="write docs/goodput.md instead")
    arguments = parser.parse_args(argv)
    if arguments.mtu and not 68 <= arguments.mtu <= 65_000:
        parser.error(f"--mtu {arguments.mtu}: want 68 to 65000")
    if min(arguments.size, arguments.buffer, arguments.seeds) < 0:
        parser.error("a negative number of bytes or seeds")
    return arguments


def wires(arguments: argparse.Namespace) -> list[Profile]:
    """The wires that were asked for."""
    if arguments.profile == "all":
        return list(PROFILES.values())
    if arguments.profile:
        return [PROFILES[arguments.profile]]
    return [
        Profile(
            "as given",
            loss=arguments.loss,
            duplicate=arguments.dup,
            reorder=arguments.reorder,
            delay=arguments.delay,
            jitter=arguments.jitter,
            corrupt=arguments.corrupt,
            rate=arguments.rate / 8,
            buffer=arguments.buffer,
        )
    ]


def run(profile: Profile, arguments: argparse.Namespace) -> int:
    """Every seed over one wire, one line in all and one for each difference; how many failed."""
    failed = retransmitted = timeouts = frames = 0
    simulated = 0.0
    for seed in range(arguments.seed, arguments.seed + arguments.seeds):
        mtu = arguments.mtu or (576, 1500, 9000)[seed % 3]
        transfer = simulate(profile, seed, size=arguments.size, mtu=mtu)
        wire = transfer.wire
        simulated += transfer.whole_at - wire.started
        frames += wire.frames
        for stack in (wire.left, wire.right):
            retransmitted += stack.counters.tcp_retransmits
            timeouts += stack.counters.tcp_timeouts
        differences = transfer.differences()
        failed += bool(differences)
        for difference in differences:
            print(f"{profile}: seed {seed}, mtu {mtu}: {difference}", flush=True)
    good = 16 * arguments.size * arguments.seeds / simulated / 1e6 if simulated > 0 else 0.0
    print(
        f"{profile}: {arguments.seeds - failed} of {arguments.seeds} seeds right; {frames} frames, {retransmitted} sent again, "
        f"{timeouts} time-outs, {simulated:.1f} s simulated, {good:.2f} Mbit/s",
        flush=True,
    )
    return failed


def main(argv: list[str]) -> int:
    arguments = parse(argv)
    if arguments.goodput:
        goodput.PAGE.write_text(goodput.page())
        print(f"written: {goodput.PAGE}")
        return 0
    return int(sum(run(profile, arguments) for profile in wires(arguments)) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
