"""The TCP/IP machines and the switch: state, but no I/O, no clock and no randomness of their own."""
