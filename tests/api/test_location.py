"""Finding the host API: what is given, what the environment says, what is alive."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from sulla_trio.api.location import (
    ApiLocation,
    default_listen,
    find_api,
    is_private,
    make_private,
    parse_location,
    runtime_directory,
    sweep,
)
from sulla_trio.errors import ConfigError


@pytest.fixture
def listening(tmp_path: Path):
    sockets = []

    def listen(name: str) -> str:
        sock = socket.socket(socket.AF_UNIX)
        sockets.append(sock)
        sock.bind(str(tmp_path / name))
        sock.listen()
        return f"unix://{tmp_path / name}"

    yield listen
    for sock in sockets:
        sock.close()


def dead(tmp_path: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / name))


def test_option_wins_over_environment(tmp_path: Path) -> None:
    environment = {"SULLA_API": "unix:///b", "SULLA_API_TOKEN": "t"}
    assert find_api("unix:///a", environment, tmp_path) == ApiLocation("unix:///a")
    assert find_api(None, environment, tmp_path) == ApiLocation("unix:///b")
    assert find_api("tcp://127.0.0.1:1", environment, tmp_path) == ApiLocation("tcp://127.0.0.1:1", "t")


def test_the_only_one_alive(tmp_path: Path, listening) -> None:
    dead(tmp_path, "host-switch-1.sock")
    listening("other.sock")
    url = listening("host-switch-2.sock")
    assert find_api(None, {"SULLA_API": ""}, tmp_path).url == url


def test_several_are_listed(tmp_path: Path, listening) -> None:
    urls = [listening("host-switch.sock"), listening("host-switch-2.sock")]
    with pytest.raises(
        ConfigError, match="2 host-switches are running; choose one with --api URL or SULLA_API"
    ) as caught:
        find_api(None, {}, tmp_path)
    assert all(url in str(caught.value) for url in urls)


def test_none_names_the_directory_and_the_way_out(tmp_path: Path) -> None:
    dead(tmp_path, "host-switch.sock")
    (tmp_path / "api.json").write_text("{")
    (tmp_path / "api-2.json").write_text("[]")
    (tmp_path / "api-3.json").write_text(json.dumps({"url": "tcp://127.0.0.1:notaport", "token": "t"}))
    with pytest.raises(ConfigError, match=f"looked in {tmp_path}.*--api URL or SULLA_API"):
        find_api(None, {}, tmp_path)
    with pytest.raises(ConfigError, match="no host-switch is running"):
        find_api(None, {}, tmp_path / "missing")


@pytest.mark.parametrize(
    "text", ["", "host-switch.sock", "/run/x", "http://x", "tcp://x", "tcp://:1", "tcp://x:y", "unix://a/b"]
)
def test_bad_url_names_itself_and_its_source(text: str) -> None:
    with pytest.raises(ConfigError, match=r"SULLA_API: .* is not an API address") as caught:
        parse_location(text, "SULLA_API")
    assert text in str(caught.value)


def test_sweep_removes_what_the_dead_left(tmp_path: Path, listening) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    gone = process.pid
    dead(tmp_path, f"host-switch-{gone}.sock")
    dead(tmp_path, "host-switch.sock")  # no pid: its successor replaces it
    dead(tmp_path, f"host-switch-{os.getpid()}.sock")  # alive, not listening yet
    (tmp_path / f"api-{gone}-1.json").write_text(json.dumps({"url": "tcp://127.0.0.1:notaport", "token": "t"}))
    (tmp_path / f"api-{gone}-2.json").write_text("not ours")
    listening(f"host-switch-{gone}.x.sock")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "host-switch.sock", f"host-switch-{os.getpid()}.sock", f"api-{gone}-2.json", f"host-switch-{gone}.x.sock",
    }  # fmt: skip


def test_directory_of_others_is_refused(tmp_path: Path, listening) -> None:
    listening("host-switch.sock")
    make_private(tmp_path / "new")
    assert is_private(tmp_path / "new")
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="is not yours alone"):
        make_private(tmp_path)
    with pytest.raises(ConfigError, match="no host-switch is running"):
        find_api(None, {}, tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    assert not is_private(tmp_path / "link")


def test_names() -> None:
    assert default_listen(None, Path("/r")) == "unix:///r/host-switch.sock"
    assert default_listen(7, Path("/r")) == "unix:///r/host-switch-7.sock"
    assert runtime_directory().name == "sulla"


def test_token_stays_out_of_repr() -> None:
    assert "secret" not in repr(ApiLocation("tcp://x:1", "secret"))


def test_no_safe_runtime_directory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError("runtime directory /tmp/runtime-0 is below /tmp, owned by uid 65534; set XDG_RUNTIME_DIR instead")

    monkeypatch.setattr("platformdirs.user_runtime_dir", refuse)
    with pytest.raises(ConfigError, match="set XDG_RUNTIME_DIR instead"):
        runtime_directory()
