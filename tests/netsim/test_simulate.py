"""tools/simulate: the same seed is the same story, a failure is a status and a seed, and the goodput table is as the code."""

from __future__ import annotations

import pytest

from sulla_trio.netstack import tcp_arrival
from tools.simulate_lib import goodput
from tools.simulate_lib.__main__ import main
from tools.simulate_lib.transfer import PROFILES, simulate
from tools.simulate_lib.wire_pair import Profile


def test_flags_make_a_wire(capsys: pytest.CaptureFixture[str]) -> None:
    flags = (
        "--seed 7 --seeds 3 --loss 0.02 --reorder 0.1 --dup 0.05 --delay 0.01 --rate 10e6 --buffer 30000 --corrupt 0.01"
    )
    assert main(flags.split()) == 0
    assert capsys.readouterr().out.startswith("as given: 3 of 3 seeds right; ")


def test_each_named_wire(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--profile", "all", "--seed", "5000", "--seeds", "3", "--size", "20000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(PROFILES)


def test_a_wire_that_carries_nothing_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "4", "--loss", "1"]) == 1
    out = capsys.readouterr().out
    assert "seed 4, mtu 1500: left got 0 of 60000 bytes, the first wrong or missing one is number 0" in out
    assert "0 of 1 seeds right" in out


def test_a_fault_of_the_stack_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come before is handed over again, as a stack would that does not trim (RFC 9293 section 3.10.7.4)."""
    monkeypatch.setattr(tcp_arrival, "check_sequence", lambda c, segment, now: True)
    monkeypatch.setattr(tcp_arrival, "diff", lambda a, b: max(0, (a - b + (1 << 31) & 0xFFFFFFFF) - (1 << 31)))
    found = simulate(PROFILES["duplicating"], 1, size=60_000, mtu=1500).differences()
    assert any("the first wrong or missing one" in difference for difference in found)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--loss 2", "argument --loss: invalid probability value: '2'"),
        ("--delay -1", "argument --delay: "),
        ("--mtu 20", "--mtu 20: want 68 to 65000"),
        ("--size=-5", "a negative number of bytes or seeds"),
        ("--profile unknown", "argument --profile: invalid choice: 'unknown'"),
        ("--seed x", "argument --seed: invalid int value: 'x'"),
    ],
)
def test_bad_flags(flags: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(flags.split())
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_the_same_seed_is_the_same_story() -> None:
    one, two, other = (simulate(PROFILES["everything"], seed, size=50_000, mtu=1500) for seed in (3, 3, 4))
    assert (one.wire.frames, one.wire.now, one.whole_at) == (two.wire.frames, two.wire.now, two.whole_at)
    assert one.whole_at != other.whole_at


def test_a_rate_is_a_rate() -> None:
    """100,000 bytes at 50,000 a second take two seconds; headers and the handshake come on top."""
    transfer = simulate(Profile(rate=50_000), 1, size=100_000, mtu=1500)
    assert transfer.differences() == []
    assert 2.0 < transfer.whole_at - transfer.wire.started < 3.0


@pytest.mark.slow
def test_many_seeds() -> None:
    assert main(["--profile", "all", "--seed", "10000", "--seeds", "100"]) == 0


@pytest.mark.slow
def test_the_page_in_the_docs_is_current() -> None:
    assert goodput.PAGE.read_text() == goodput.page()
