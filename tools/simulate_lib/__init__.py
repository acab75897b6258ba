"""Deterministic simulation of two stacks on a bad wire. See tools/simulate."""
