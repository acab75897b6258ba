"""Segmentation and merging between two real kernels: what one leaves undone and the other cannot know of is done in between."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("two_kernels.py")
OFFLOAD_USO4 = 0x20


def two_kernels(mode: str) -> dict[str, Any]:
    own = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-rn")
    done = subprocess.run([*own, sys.executable, str(PROGRAM), mode], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["right"]["received"] == result["sent"]["left"]
    assert result["left"]["received"] == result["sent"]["right"]
    assert result["bridge"]["longest"] == 1514
    assert result["bridge"]["super_frames"] > 50
    assert result["bridge"]["trains"] > 50
    return result


@pytest.mark.e2e
def test_no_kernel_finds_fault_with_a_frame() -> None:
    result = two_kernels("clean")
    for side in ("left", "right"):
        assert result[side]["tcp"]["InCsumErrors"] == 0
        assert result[side]["tcp"]["InErrs"] == 0
    # Fewer segments than a quarter of what came over the link: the kernel took the trains as wholes.
    assert result["bridge"]["merged_frames"] > 5000
    assert result["bridge"]["trains"] < result["bridge"]["merged_frames"] / 4
    assert result["right"]["datagrams"] == [bytes((number,)).hex() * 1200 for number in range(20)]
    assert result["bridge"]["uso_frames"] == bool(result["mask"] & OFFLOAD_USO4)


@pytest.mark.e2e
def test_the_kernel_finds_a_damaged_segment_in_a_train() -> None:
    """Merging computes the whole's checksum from the segments' and does not vouch for it."""
    result = two_kernels("damage")
    assert result["bridge"]["damaged"] == 1
    assert result["left"]["tcp"]["InCsumErrors"] >= 1
