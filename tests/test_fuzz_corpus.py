"""Every fuzz target keeps its invariant on its whole corpus and on a short run of inputs near it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = Path(__file__).resolve().parent.parent / "fuzz"


def load_runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_run", FUZZ / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = load_runner()
TARGETS = {name: RUN.load(name) for name in RUN.names()}
SEEDS = [pytest.param(name, data, id=f"{name}-{seed}") for name in TARGETS for seed, data in RUN.corpus(name).items()]


def test_there_are_targets() -> None:
    assert {"framing", "ethernet", "arp", "ipv4", "icmp", "udp", "tcp", "dhcp"} <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_says_its_invariant_and_has_seeds(name: str) -> None:
    assert (TARGETS[name].__doc__ or "").splitlines()[0].strip()
    assert RUN.corpus(name)


def test_each_corpus_has_its_target() -> None:
    assert {path.name for path in (FUZZ / "corpus").iterdir() if path.is_dir()} <= set(TARGETS)


@pytest.mark.parametrize(("name", "data"), SEEDS)
def test_seed(name: str, data: bytes) -> None:
    TARGETS[name].fuzz_one(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_near_the_corpus(name: str, data: st.DataObject) -> None:
    """Bytes of any kind, or a seed cut, overwritten in one place and extended."""
    start = data.draw(st.sampled_from([b"", *RUN.corpus(name).values()]))
    at = data.draw(st.integers(0, len(start)))
    patch = data.draw(st.binary(max_size=12))
    keep = data.draw(st.booleans())
    TARGETS[name].fuzz_one(start[:at] + patch + (start[at + len(patch) :] if keep else b""))


def test_a_finding_is_saved_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "broken.py").write_text(
        '"""Never ends in X."""\nDICTIONARY = (b"X",)\ndef fuzz_one(data: bytes) -> None:\n    assert not data.endswith(b"X")\n'
    )
    monkeypatch.setattr(RUN, "HERE", tmp_path)
    assert not RUN.blind("broken", 30.0, 1)
    (finding,) = (tmp_path / "findings").iterdir()
    assert finding.read_bytes().endswith(b"X")
    out = capsys.readouterr().out
    assert str(finding) in out
    assert finding.read_bytes().hex() in out
