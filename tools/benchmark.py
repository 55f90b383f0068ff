#!/usr/bin/env python
"""What is claimed to be fast, measured: python tools/benchmark.py [--json OUT] [--csv OUT] [NAME ...]"""
import os
import sys

os.environ['OMP_NUM_THREADS'] = '1'
# the checkout instead of this folder, whose file names must not hide modules of Python's own
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
from hgd_det.experiments.benchmarks.command import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
