"""What older versions of mmengine say about a config; the rest is in tests/faults/test_bad_input.py."""
import pytest
from mmengine.config import Config

from hgd_det.errors import UserError
from hgd_det.training.mistakes import check_config, user_errors


class SSD:
    def __init__(self, init_cfg=None):
        pass


def build_from_cfg(obj_cls, args, error):
    """As mmengine builds a class, and as mmengine 0.10 reports its failure."""
    raise type(error)(f'class `{obj_cls.__name__}` in some/where.py: {error}') from error


@pytest.mark.parametrize('error, text', [
    (KeyError('HGDD is not in the mmdet::model registry'), "the model 'HGDD', which does not exist"),
    (TypeError("X.__init__() got an unexpected keyword argument 'init_cgf'"), 'did you mean init_cfg'),
    (TypeError("X.__init__() missing 1 required positional argument: 'a'"), "it missing 1 required"),
    (AssertionError(''), r'SSD cannot be made from its config, depth=17 \(AssertionError'),
])
def test_an_error_that_older_versions_raise_anew_is_told_as_a_mistake_in_the_config(error, text):
    with pytest.raises(UserError, match=text), user_errors():
        build_from_cfg(SSD, dict(depth=17, norm=dict(type='BN')), error)


def test_an_error_outside_of_building_is_ours():
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError


@pytest.mark.parametrize('change, text', [
    (dict(train_dataloader='x'), "train_dataloader='x'; write dict"),
    (dict(train_cfg=dict(max_iters=0)), 'train_cfg.max_iters=0; give a whole number from 1 up'),
    (dict(val_dataloader=dict()), 'no val_cfg and no val_evaluator'),
    (dict(model=dict(type='Distiller')), 'model.student=None')])
def test_what_mmengine_would_stumble_over_is_seen_before(change, text):
    with pytest.raises(UserError, match=text):
        check_config(Config(dict(model=dict(type='SSD')) | change))
