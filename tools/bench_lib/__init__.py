"""Benchmarks of our daemons and their peers, in one run, as ratios. See tools/bench."""
