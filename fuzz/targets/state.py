"""Only ConfigError escapes, what is taken is written and read back the same, and a lease table takes no address it may not give."""

from __future__ import annotations

from sulla_trio.config import network_config
from sulla_trio.errors import ConfigError
from sulla_trio.services import state
from sulla_trio.services.leases import LeaseTable

DICTIONARY = (
    b'{"version":1,"forwards":[],"leases":[]}',
    b'{"local":":1","remote":"192.168.127.2:80","protocol":"tcp","source":"api"}',
    b'{"ip":"192.168.127.3","mac":"02:00:00:00:00:01","expires":1}',
    b"\\ud800",
    b"[[[[",
    b"1e999",
)
_NETWORK = network_config()


def fuzz_one(data: bytes) -> None:
    """`data` is the bytes of a file."""
    try:
        value = state.parse(data)
    except ConfigError:
        return
    assert state.parse(state.emit(value)) == value
    table = LeaseTable(_NETWORK)
    restored = table.restore(value.leases, unix=0.0, now=0.0)
    assert restored <= len(value.leases)
    for lease in table.snapshot(unix=0.0):
        assert lease.ip in _NETWORK
        assert lease.ip not in (_NETWORK.gateway_ip, _NETWORK.host_ip, _NETWORK.guest_ip)
        assert lease.expires <= table.seconds
