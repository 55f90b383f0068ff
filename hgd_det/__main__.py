"""`python -m hgd_det VERB ...`, or `python PATH/hgd_det VERB ...`: hgd-det without its script on the path."""
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
if os.path.abspath(sys.path[0]) == here:    # run by its path: files here must not hide Python's modules
    sys.path[0] = os.path.dirname(here)
from hgd_det.cli.main import main  # noqa: E402

if __name__ == '__main__':
    sys.exit(main())
