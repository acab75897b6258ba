"""The family is closed: everything we raise on purpose is a SullaError that carries what its reader needs."""

from sulla_trio import errors


def test_family() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert all(issubclass(kind, errors.SullaError) for kind in kinds)
    assert errors.BadPacket("tcp_short").reason == "tcp_short"
    failure = errors.ForwardError("unknown", "proxy not found")
    assert (failure.code, str(failure)) == ("unknown", "proxy not found")
