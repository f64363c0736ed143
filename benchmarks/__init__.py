"""Benchmarks: every figure that README and docs/measured.md show, as a command that anyone can run."""
