"""The HTTP API, its websocket of events, and their client."""
