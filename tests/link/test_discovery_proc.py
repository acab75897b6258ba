"""VMs in command lines: every spelling that the VMMs take, and what is no VM."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sulla_trio.link import discovery_proc
from sulla_trio.link.discovery_proc import running_vms


class Proc:
    """A process table: each process in a directory of its own, whose root and working directory are as given."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "proc"
        self.path.mkdir()
        (self.path / "self").mkdir()
        (self.path / "sys").mkdir()
        self._next = 100

    def add(self, *arguments: str, cwd: str = "/work", root: str = "/") -> Path:
        process = self.path / str(self._next)
        self._next += 1
        process.mkdir()
        (process / "cmdline").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in arguments))
        (process / "cwd").symlink_to(cwd)
        (process / "root").symlink_to(root)
        return process

    def found(self, port: int = 6669) -> list[str]:
        return [url.text for url in running_vms(str(self.path), port)]


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["-device", "vhost-vsock-pci,guest-cid=42"],
        ["-device", "vhost-vsock-pci,id=vsock0,guest-cid=42,vhostfd=31"],
        ["-device", "vhost-vsock-device,guest-cid=0x2a"],
        ["-device", "vhost-vsock-ccw,guest-cid=052"],
        ["-device", "vhost-vsock-pci-non-transitional,id=a,,b,guest-cid=42"],
        ["--device", "driver=vhost-vsock-pci,guest-cid=42"],
        ["-device", '{"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":42,"vhostfd":"31","bus":"pci.7"}'],
        ["-device", ' {"driver": "vhost-vsock-pci", "guest-cid": "0x2a"}'],
        ["-device", "vhost-vsock-pci", "-global", "vhost-vsock-pci.guest-cid=42"],
        ["-device", "vhost-vsock-pci,id=v", "-set", "device.v.guest-cid=42"],
    ],
)
@pytest.mark.parametrize("program", ["/usr/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm", "kvm"])
def test_qemu(proc: Proc, program: str, arguments: list[str]) -> None:
    proc.add(program, "-nographic", "-name", "guest-cid=7", *arguments, "-m", "512")
    assert proc.found() == ["vsock://42:6669"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["qemu-system-x86_64", "-device", "virtio-net-pci,guest-cid=42"],
        ["qemu-system-x86_64", "-device", "vhost-vsock-pci"],
        ["qemu-system-x86_64", "-device", "vhost-vsock-pci,guest-cid="],
        ["qemu-system-x86_64", "-device", "vhost-vsock-pci,id=a,,guest-cid=42"],
        ["qemu-system-x86_64", "-device"],
        ["qemu-system-x86_64", "-device", '{"driver":"vhost-vsock-pci","guest-cid":'],
        ["qemu-system-x86_64", "-device", '{"driver":["vhost-vsock-pci"],"guest-cid":42}'],
        ["qemu-system-x86_64", "-device", '{"driver":"vhost-vsock-pci","guest-cid":[42]}'],
        ["qemu-system-x86_64", "-device", "{" * 100_000],
        ["qemu-system-x86_64", "-device", '{"a":' * 100_000],
        *(
            ["qemu", "-device", f"vhost-vsock-pci,guest-cid={cid}"]
            for cid in ("2", "0", "-3", "4294967295", "x", "9" * 5000)
        ),
        ["vim", "vhost-vsock-pci,guest-cid=42"],
        ["firecracker", "--id", "x", "--api-sock", "/run/fc.api"],
        ["firecracker", "--config-file", "/not/there.json"],
        ["firecracker", "--config-file"],
        ["cloud-hypervisor", "--vsock", "cid=3"],
        ["cloud-hypervisor", "--vsock"],
    ],
)
def test_no_vm(proc: Proc, arguments: list[str]) -> None:
    proc.add(*arguments)
    assert proc.found() == []


@pytest.mark.parametrize(
    ("uds_path", "cwd", "root", "url"),
    [
        ("/run/v.sock", "/work", "/", "vsock+unix:///run/v.sock:6669"),
        ("./v.sock", "/work", "/", "vsock+unix:///work/v.sock:6669"),
        ("v.sock", "/srv/jail/root", "/srv/jail/root", "vsock+unix:///srv/jail/root/v.sock:6669"),
        ("/run/v.sock", "/srv/jail/root", "/srv/jail/root", "vsock+unix:///srv/jail/root/run/v.sock:6669"),
    ],
)
def test_firecracker(proc: Proc, tmp_path: Path, uds_path: str, cwd: str, root: str, url: str) -> None:
    config = tmp_path / "vm.json"
    config.write_text(json.dumps({"vsock": {"guest_cid": 3, "uds_path": uds_path}, "machine-config": {}}))
    place = os.path.relpath(config, root) if root != "/" else str(config)
    relative = os.path.relpath(config, cwd)
    for text in {relative, place if root == "/" else relative}:
        proc.add("/usr/bin/firecracker-v1.9.1", "--no-api", "--config-file", text, cwd=cwd, root=root)
    assert proc.found() == [url]


def test_the_oldest_firecracker(proc: Proc) -> None:
    proc.add("firecracker", "--vsock-cid=9")
    assert proc.found() == ["vsock://9:6669"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"vsock": null}', '{"vsock": {"uds_path": 3}}', '{"vsock": {"uds_path": ""}}', "\xff"]
)
def test_firecrackers_file_without_a_vsock(proc: Proc, tmp_path: Path, text: str) -> None:
    (tmp_path / "vm.json").write_text(text)
    proc.add("firecracker", "--config-file", str(tmp_path / "vm.json"))
    assert proc.found() == []


@pytest.mark.parametrize("path", ["/a\nb", "/a\0b", "/run/"])
def test_paths_that_no_url_can_name(proc: Proc, tmp_path: Path, path: str) -> None:
    (tmp_path / "vm.json").write_text(json.dumps({"vsock": {"uds_path": path}}))
    proc.add("firecracker", "--config-file", str(tmp_path / "vm.json"))
    assert proc.found() == ([] if path != "/run/" else ["vsock+unix:///run:6669"])


def test_a_configuration_that_never_ends_is_not_waited_for(proc: Proc, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    proc.add("firecracker", "--config-file", str(tmp_path / "pipe"))
    proc.add("firecracker", "--config-file", "/dev/zero")
    proc.add("firecracker", "--config-file", str(tmp_path))
    assert proc.found() == []


def test_cloud_hypervisor(proc: Proc) -> None:
    proc.add("/usr/bin/cloud-hypervisor", "--cpus", "boot=1", "--vsock", "cid=3,socket=/tmp/ch.vsock,id=v")
    proc.add("cloud-hypervisor", "--vsock", "socket=ch.vsock,cid=4", cwd="/srv")
    assert proc.found() == ["vsock+unix:///tmp/ch.vsock:6669", "vsock+unix:///srv/ch.vsock:6669"]


def test_paths_of_other_users_processes_are_not_taken_their_cids_are(
    proc: Proc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vm.json").write_text(json.dumps({"vsock": {"uds_path": "/run/docker.sock"}}))
    theirs = {
        str(proc.add(*words))
        for words in (
            ("cloud-hypervisor", "--vsock", "cid=3,socket=/run/docker.sock"),
            ("firecracker", "--config-file", str(tmp_path / "vm.json")),
            ("qemu-system-x86_64", "-device", "vhost-vsock-pci,guest-cid=5"),
        )
    }
    proc.add("cloud-hypervisor", "--vsock", "cid=3,socket=/run/ours.sock")
    opened: list[str] = []
    monkeypatch.setattr(discovery_proc, "_owner", lambda directory: 1234 if directory in theirs else 1000)
    monkeypatch.setattr("builtins.open", lambda path, mode, real=open: opened.append(path) or real(path, mode))
    assert proc.found() == ["vsock://5:6669", "vsock+unix:///run/ours.sock:6669"]
    assert all(path.endswith("/cmdline") for path in opened)


def test_each_vm_once_in_the_order_of_processes_and_what_cannot_be_read_is_passed_over(proc: Proc) -> None:
    for cid in (9, 4, 9):
        proc.add("qemu-system-x86_64", "-device", f"vhost-vsock-pci,guest-cid={cid}")
    gone = proc.add("qemu-system-x86_64", "-device", "vhost-vsock-pci,guest-cid=5")
    (gone / "cmdline").unlink()
    assert proc.found(6670) == ["vsock://9:6670", "vsock://4:6670"]
    assert running_vms(str(proc.path / "none"), 1) == []


def test_the_real_proc_is_readable() -> None:
    assert all(url.port == 6669 for url in running_vms("/proc", 6669))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40), max_size=5))
def test_no_command_line_raises(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> None:
    proc = Proc(tmp_path_factory.mktemp("any"))
    for program in ("qemu-system-x86_64", "firecracker", "cloud-hypervisor"):
        for option in ("-device", "--config-file", "--vsock", "-global"):
            proc.add(program, *(word for text in words for word in (option, text)))
    for text in proc.found():
        assert text.isprintable()
