"""The handshake's constants, which are the peers', and the collector of a fixed text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sulla_trio.wire.handshake import DEFAULT_DIALECT, DIALECTS, READY, Expected


@pytest.mark.parametrize(
    ("name", "length", "ports"), [("old", 53, (6669, 6656)), ("rd1", 60, (6669, 6656)), ("rd2", 69, (6670, 6657))]
)
def test_dialects_are_those_of_the_peers(name: str, length: int, ports: tuple[int, int]) -> None:
    dialect = DIALECTS[name]
    assert len(dialect.signature) == length
    assert (dialect.handshake_port, dialect.data_port) == ports


def test_the_target_dialect_byte_for_byte() -> None:
    assert DIALECTS[DEFAULT_DIALECT].signature.hex() == (
        "6769746875622e636f6d2f72616e636865722d73616e64626f782f72616e636865722d6465736b746f702f7372632f676f2f6e6574776f726b696e67"
    )
    assert READY.hex() == "5245414459"


@given(st.binary(min_size=1, max_size=100), st.lists(st.integers(1, 30)))
def test_any_pieces_are_the_same_text(text: bytes, sizes: list[int]) -> None:
    expected, sent = Expected(text), text + b"trailing"
    while expected.missing:
        size = min(expected.missing, sizes.pop() if sizes else 7)
        assert not expected.matches
        expected.receive(sent[:size])
        sent = sent[size:]
    assert expected.matches
    assert sent == b"trailing"


@given(st.binary(max_size=100))
def test_only_the_text_matches(data: bytes) -> None:
    expected = Expected(READY)
    expected.receive(data)
    assert expected.matches == data.startswith(READY)
    assert expected.format().isprintable()
    assert len(expected.format()) <= 80
