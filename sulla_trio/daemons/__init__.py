"""One nursery tree per role."""
