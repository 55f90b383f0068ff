import pytest


@pytest.fixture(autouse=True)
def in_mmdets_scope():
    """Detectors are built without a runner here, and a runner of another test may have left its scope."""
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
