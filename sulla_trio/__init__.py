"""A user-space layer-2 network between a host and a VM or namespace."""

__version__ = "0.1.0"
