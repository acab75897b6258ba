"""A message bus with a systemd on it that knows the main processes of some units: `python systemd_stub.py ADDRESS UNIT=PID...`"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/>
  </policy>
</busconfig>
"""


@contextlib.contextmanager
def bus_with_systemd(units: dict[str, int] | None) -> Iterator[str]:
    """Address of a real dbus-daemon; with `units` there is a stub of systemd on it. Object path -> main process."""
    with tempfile.TemporaryDirectory(prefix="sulla-") as directory:
        config = Path(directory) / "bus.conf"
        address = f"unix:path={directory}/bus"
        config.write_text(_CONFIG.format(path=f"{directory}/bus"))
        daemon = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"], stdout=subprocess.PIPE
        )
        stub = None
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline()
            if units is not None:
                arguments = [f"{path}={pid}" for path, pid in units.items()]
                stub = subprocess.Popen([sys.executable, __file__, address, *arguments], stdout=subprocess.PIPE)
                assert stub.stdout is not None
                assert stub.stdout.readline() == b"ready\n"
            yield address
        finally:
            for process in (stub, daemon):
                if process is not None:
                    process.kill()
                    process.communicate()


def main() -> None:
    from jeepney import DBusAddress, HeaderFields, new_error, new_method_call, new_method_return
    from jeepney.io.blocking import open_dbus_connection

    units = dict(argument.rsplit("=", 1) for argument in sys.argv[2:])
    connection = open_dbus_connection(sys.argv[1])
    bus = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
    connection.send_and_get_reply(new_method_call(bus, "RequestName", "su", ("org.freedesktop.systemd1", 0)))
    print("ready", flush=True)
    while True:
        message = connection.receive()
        fields = message.header.fields
        if fields.get(HeaderFields.member) != "Get":
            continue
        pid = units.get(fields[HeaderFields.path])
        if pid is None or message.body != ("org.freedesktop.systemd1.Service", "MainPID"):
            unknown = "org.freedesktop.DBus.Error.UnknownObject"
            connection.send(new_error(message, unknown, "s", (f"Unknown object '{fields[HeaderFields.path]}'.",)))
        else:
            connection.send(new_method_return(message, "v", (("u", int(pid)),)))


if __name__ == "__main__":
    main()
