"""Byte streams and datagrams between the virtual network and the host's own sockets."""
