"""The guest's name service files. (How they look inside is in tests/e2e/test_run.py.)"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sulla_trio.link import mounts


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "hosts: files dns\n"),
        ("hosts: files mdns4_minimal [NOTFOUND=return] resolve dns\n", "hosts: files dns\n"),
        ("passwd: files\n  hosts : x\n# hosts: x\nrpc: db", "passwd: files\n# hosts: x\nrpc: db\nhosts: files dns\n"),
    ],
)  # fmt: skip
def test_hosts_are_files_and_dns(before: str, after: str) -> None:
    assert mounts.hosts_by_files_and_dns(before) == after


def inside(code: str) -> str:
    """Output of a program in a mount namespace whose /srv is a tmpfs with some things in it."""
    program = "import os\nfrom sulla_trio.link import mounts, netns\nnetns.enter_guest_namespaces()\n"
    program += "netns.mount('t', '/srv', 'tmpfs', 0)\nos.makedirs('/srv/d/sub')\nos.symlink('sub', '/srv/d/link')\n"
    program += "open('/srv/d/file', 'w').write('old')\nopen('/srv/d/sub/deep', 'w').write('deep')\n"
    program += "os.chmod('/srv/d', 0o711)\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_an_existing_file_is_covered() -> None:
    out = inside("""
        mounts.replace_file("/srv/d/file", "new", [])
        print(open("/srv/d/file").read(), oct(os.stat("/srv/d/file").st_mode))
        netns.detach("/srv/d/file")
        print(open("/srv/d/file").read())
    """)
    assert out == "new 0o100644\nold\n"


@pytest.mark.e2e
@pytest.mark.parametrize("path", ["/srv/d/missing", "/srv/d/not/there/missing"])
def test_a_missing_file_appears_beside_what_was_there(path: str) -> None:
    out = inside(f"""
        os.umask(0o077)
        mounts.replace_file({path!r}, "new", [])
        print(open({path!r}).read(), open("/srv/d/file").read(), open("/srv/d/link/deep").read())
        print(oct(os.stat("/srv/d").st_mode), os.readlink("/srv/d/link"))
        netns.detach("/srv/d")
        print(sorted(os.listdir("/srv/d")))
    """)
    assert out == "new old deep\n0o40711 sub\n['file', 'link', 'sub']\n"


@pytest.mark.e2e
def test_nothing_of_it_is_seen_outside() -> None:
    before = os.listdir("/srv"), Path("/proc/self/mounts").read_text()
    inside("mounts.set_up_name_service('192.0.2.1'); assert '192.0.2.1' in open('/etc/resolv.conf').read()")
    assert (os.listdir("/srv"), Path("/proc/self/mounts").read_text()) == before
