"""The stack, driven: clock, ports, timers, streams, the gateway's own services."""
