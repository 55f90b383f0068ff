"""hgd_det: distil object detectors on MMDetection.

Importing the package is cheap (no torch): it only makes `import mmdet.models` work where mmcv was
installed without its compiled operators, see `hgd_det.compat`.
"""

from hgd_det import compat

__version__ = '0.1.0'

compat.install()
