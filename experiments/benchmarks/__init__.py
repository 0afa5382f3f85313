"""Speed and memory, measured beside other libraries in one run, printed and recorded.

Every module measures one thing and is a command; `python -m experiments.benchmarks` runs them all.
How they measure is in docs/benchmarks.md.
"""
