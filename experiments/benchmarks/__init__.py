"""Speed and memory, measured and printed."""
