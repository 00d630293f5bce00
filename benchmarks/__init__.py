"""What is fast, against what, how measured: `python -m benchmarks`."""
