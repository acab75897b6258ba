"""Who may use a TCP listener of the API. (The whole table runs over HTTP in test_app.)"""

from __future__ import annotations

from sulla_trio.api.access import Access


def test_order_of_checks_and_texts() -> None:
    access = Access("secret", frozenset({"127.0.0.1", "::1"}))
    assert access.check("127.0.0.1:1", None, "Bearer secret") is None
    assert access.check("[::1]:1", "http://[::1]:1", "Bearer  secret ") is None
    for host in (None, "", "localhost", "[", "127.0.0.1.evil.example", "evil@127.0.0.1.x"):
        refusal = access.check(host, None, "Bearer secret")
        assert refusal is not None
        assert refusal.status == 403
        assert "127.0.0.1" in refusal.text
    for origin in ("null", "", "http://evil.example", "http://["):
        refusal = access.check("127.0.0.1", origin, "Bearer secret")
        assert refusal is not None
        assert refusal.status == 403
    for authorization in (None, "", "Bearer", "Bearer Secret", "Basic secret", "Bearer secret2", "Bearer sécret"):
        refusal = access.check("127.0.0.1", None, authorization)
        assert refusal is not None
        assert refusal.status == 401
        assert "secret" not in refusal.text


def test_token_stays_out_of_repr() -> None:
    assert "secret" not in repr(Access("secret"))
