"""Every test sees MMDetection as `import hgd_det` makes it work, with mmdet's registry scope."""
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: threads only get in each other's way

import hgd_det  # noqa: E402,F401
