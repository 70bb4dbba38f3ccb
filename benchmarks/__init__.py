"""What makes the figures of docs/figures.md again: `python -m benchmarks.NAME [--json FILE] [--plot FILE]`."""
