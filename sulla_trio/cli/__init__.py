"""The only readers of argv and environment."""
