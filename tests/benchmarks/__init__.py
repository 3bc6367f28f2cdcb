"""Benchmarks that assert ratios measured side by side, in CPU time of one thread."""
