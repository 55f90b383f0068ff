#!/usr/bin/env python
"""`hgd-det export` from a checkout, installed or not."""
import os
import sys

# the checkout instead of this folder, whose file names must not hide modules of Python's own
sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
from hgd_det.cli.main import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main(['export', *sys.argv[1:]]))
