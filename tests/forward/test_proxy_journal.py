"""What a port proxy tells: events in the shape of host-switch's, flows with their bytes."""

from __future__ import annotations

from sulla_trio.forward.proxy_journal import ProxyJournal
from sulla_trio.services.events import EventLog


async def test_events_and_flows() -> None:
    journal = ProxyJournal(EventLog(lambda: 5.0))
    journal.listener("failed", "tcp", "0.0.0.0:80", "192.168.143.1:80", reason="why")
    flow = journal.opened("udp", "127.0.0.1:53", "192.168.143.1:53", "127.0.0.1:999")
    flow.bytes_in, flow.bytes_out = 1, 2
    assert [one.id for one in journal.flows.live()] == [1]
    journal.closed("udp", "127.0.0.1:53", flow, "idle")
    assert not journal.flows.live()
    failed, opened, closed = journal.events.since(0)
    assert failed == {
        "seq": 1, "time": 5.0, "type": "forward.failed", "local": "0.0.0.0:80", "remote": "192.168.143.1:80",
        "protocol": "tcp", "owner": None, "source": "wsl-proxy", "reason": "why",
    }  # fmt: skip
    assert opened == {
        "seq": 2, "time": 5.0, "type": "forward.opened", "local": "127.0.0.1:53", "remote": "192.168.143.1:53",
        "protocol": "udp", "peer": "127.0.0.1:999", "flow": 1,
    }  # fmt: skip
    assert closed == {
        **opened, "seq": 3, "type": "forward.closed", "bytes_in": 1, "bytes_out": 2, "reason": "idle",
    }  # fmt: skip
