"""Bytes to values and back, one file per protocol: constants, value, parse, emit, format. No state, no I/O."""
