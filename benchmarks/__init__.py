"""What makes the figures again that the README states: `python -m benchmarks.NAME [--json FILE] [--plot FILE]`."""
