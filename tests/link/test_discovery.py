"""Where VMs are looked for, and what is said when there is none."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from sulla_trio.errors import ConfigError
from sulla_trio.link.discovery import (
    COMPUTE_SYSTEMS,
    FixedCandidates,
    NoCandidates,
    ProcCandidates,
    RegistryCandidates,
    default_candidates,
)
from sulla_trio.link.endpoint_url import parse_endpoint
from tests.support.fake_registry import FakeRegistry

VM = "2F3A9B1C-77AA-4E0D-9C55-0123456789AB"
OTHER = "11111111-2222-3333-4444-555555555555"


def test_fixed_candidates_have_the_dialects_port_and_come_once() -> None:
    candidates = FixedCandidates(["vsock://3", "vsock+unix:///run/fc.sock", "unix:///hs.sock", "vsock://3:6670"], 6670)
    assert [url.text for url in candidates.find()] == [
        "vsock://3:6670",
        "vsock+unix:///run/fc.sock:6670",
        "unix:///hs.sock",
    ]
    candidates.find().clear()
    assert len(candidates.find()) == 3


@pytest.mark.parametrize("url", ["vsock://ANY", "vsock://ANY:1", "fd://3", "vsock://x", "http://x"])
def test_fixed_candidates_that_cannot_be_probed(url: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoint|no VM that can be probed") as caught:
        FixedCandidates([url], 6669)
    assert url in str(caught.value)


def test_no_fixed_candidate() -> None:
    with pytest.raises(NoCandidates):
        FixedCandidates([], 6669).find()


def test_the_registrys_compute_systems(caplog: pytest.LogCaptureFixture) -> None:
    registry = FakeRegistry({COMPUTE_SYSTEMS: [VM, OTHER, VM.lower()]})
    assert RegistryCandidates(6669, registry).find() == [
        parse_endpoint(f"hyperv://{VM.lower()}:6669"),
        parse_endpoint(f"hyperv://{OTHER}:6669"),
    ]
    assert registry.open == 0
    assert not caplog.records


def test_no_registry_key() -> None:
    with pytest.raises(NoCandidates, match=r"^could not open registry key, is WSL VM running. The system cannot find"):
        RegistryCandidates(6669, FakeRegistry({})).find()


@pytest.mark.parametrize("names", [[], ["{" + VM + "}"]])
def test_no_vm_in_the_registry(names: list[str]) -> None:
    with pytest.raises(NoCandidates, match=r"^no running WSL VM found$"):
        RegistryCandidates(6669, FakeRegistry({COMPUTE_SYSTEMS: names})).find()


def test_an_invalid_name_is_told_once_and_again_when_it_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    registry = FakeRegistry({COMPUTE_SYSTEMS: ["Container", VM]})
    candidates = RegistryCandidates(6669, registry)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert [url.host for url in candidates.find()] == [VM.lower()]
        assert caplog.messages == ["invalid VM name: Container"]
        registry.keys = {COMPUTE_SYSTEMS: [VM]}
        candidates.find()
        registry.keys = {COMPUTE_SYSTEMS: ["Container", VM]}
        candidates.find()
    assert caplog.messages == ["invalid VM name: Container"] * 2


def test_proc(tmp_path: Path) -> None:
    candidates = ProcCandidates(6669, str(tmp_path))
    with pytest.raises(NoCandidates, match=r"no running VM found.*--vm URL"):
        candidates.find()
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_bytes(b"qemu-system-x86_64\0-device\0vhost-vsock-pci,guest-cid=5\0")
    assert candidates.find() == [parse_endpoint("vsock://5:6669")]


def test_the_default_of_each_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(default_candidates("linux", 6669), ProcCandidates)
    registry = FakeRegistry({COMPUTE_SYSTEMS: [OTHER]})
    monkeypatch.setitem(sys.modules, "winreg", registry)
    assert default_candidates("win32", 6670).find() == [parse_endpoint(f"hyperv://{OTHER}:6670")]
    with pytest.raises(NoCandidates, match="darwin: name one with --vm"):
        default_candidates("darwin", 6669).find()
