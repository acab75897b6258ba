"""`sulla demo` and `tools/demo`: every service shown at work, one line per step."""
