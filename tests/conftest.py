"""Every test sees MMDetection as `import hgd_det` makes it work."""
import logging
import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: threads only get in each other's way

import pytest  # noqa: E402

import hgd_det  # noqa: E402,F401

# mmengine's loggers outlive the test whose captured stream they write to
logging.raiseExceptions = False


@pytest.fixture(autouse=True)
def own_visualizer():
    """mmengine keeps one visualizer per name and process: without this, that of the test before."""
    from mmengine.visualization import Visualizer
    yield
    Visualizer._instance_dict.clear()
