"""What is faster than what it replaces, measured: `tools/benchmark.py`.

A benchmark is a module of this package with a function `run(options)`, which gets the options of the command
line and yields rows: :class:`~hgd_det.experiments.benchmarks.measure.Row`.
"""
