"""Frames and processes, to and from the kernel."""
