"""hgd_det: distil object detectors on MMDetection.

Importing the package is cheap (no torch): it only makes `import mmdet.models` work where mmcv was
installed without its compiled operators, see `hgd_det.compat`.
"""

import os

from hgd_det import compat

__version__ = '0.1.0'
MAX_PIXELS = 100_000_000    # an image whose header claims more is not decoded, whoever loads it

# OpenCV reads it once, when it is imported: a picture that claims more is not decoded (its own bound: 2^30)
os.environ.setdefault('OPENCV_IO_MAX_IMAGE_PIXELS', str(MAX_PIXELS))
compat.install()
