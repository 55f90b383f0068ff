"""Every method goes on after an interruption as if there had been none, bit for bit."""
from pathlib import Path

import pytest
import torch

import hgd_det.registered  # noqa: F401
from hgd_det.checkpoint import load
from hgd_det.cli.main import main
from hgd_det.experiments.tables import table
from hgd_det.paths import find_method, read_config

pytestmark = pytest.mark.thorough

PAIRS = {line.method: line.config for line in table('methods', 'shapes').lines if line.method}
# Of eight steps the first phases of a method, a fifth or more of the training, have at least two: they go
# on after one, and are over after six.
STEPS, EARLY, LATE = 8, 1, 6
LONGER = dict(factor_transfer=['model.terms.factor.pretrain=0.25'])     # a tenth otherwise


def interruptions():
    """(method, steps after which it is interrupted) of the methods of one training; those of several
    generations are for their own tests."""
    methods = {name: read_config(find_method(name)) for name in PAIRS}
    return [(name, (EARLY, LATE) if has_phases(method.terms) else (LATE,))
            for name, method in methods.items() if 'generations' not in method]


def has_phases(terms):
    return any(term.keys() & {'warmup', 'stop', 'pretrain'} for term in terms.values())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a small drawing of the data and both teachers after two steps."""
    folder = tmp_path_factory.mktemp('resume')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # mmengine lays out the text of the config for each checkpoint, which takes longer than the steps
        for place in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):     # by version
            patch.setattr(f'{place}.FormatCode', lambda text, **options: (text, True), raising=False)
        assert main(['data', 'shapes', 'data/shapes', '--train', '24', '--test', '8']) == 0
        for teacher in ('teacher', 'ld_teacher'):
            train(f'shapes/{teacher}', f'work_dirs/shapes/{teacher}', steps=2)
        yield folder


def train(name, work_dir, *flags, steps=STEPS):
    what = [PAIRS[name], '--method', name] if name in PAIRS else [name]
    assert main(['train', *what, '--no-validate', '--work-dir', str(work_dir), *flags,
                 '--cfg-options', f'train_cfg.max_iters={steps}', 'train_dataloader.batch_size=2',
                 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
                 f'default_hooks.checkpoint.save_begin={EARLY}',
                 f'default_hooks.checkpoint.interval={LATE - EARLY}', *LONGER.get(name, ())]) == 0


def differences(one, other, place=''):
    """Where two nested contents of checkpoints differ, by a single bit or more."""
    if type(one) is not type(other):
        return [f'{place}: {type(one)} and {type(other)}']
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [place]
    if isinstance(one, dict):
        apart = [f'{place}.{key}' for key in one.keys() ^ other.keys()]
        return apart + [d for k in one.keys() & other.keys()
                        for d in differences(one[k], other[k], f'{place}.{k}')]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f'{place}: {len(one)} and {len(other)} entries']
        return [d for i, both in enumerate(zip(one, other, strict=True))
                for d in differences(*both, f'{place}[{i}]')]
    return [] if one == other else [f'{place}: {one} and {other}']


def test_methods_with_phases_are_recognised():
    found = dict(interruptions())
    assert len(found) > 20 and found['logit_kd'] == (LATE,)
    assert all(found[name] == (EARLY, LATE) for name in (
        'activation_boundary', 'factor_transfer', 'fitnets', 'fsp', 'mask_guided', 'netaug'))


@pytest.mark.parametrize('name, steps', interruptions(), ids=dict(interruptions()))
def test_a_resumed_run_ends_as_the_uninterrupted_one(name, steps, folder):
    whole = Path('whole', name)
    train(name, whole)
    end = load(whole / f'iter_{STEPS}.pth')
    assert {'state_dict', 'optimizer'} <= end.keys()
    for step in steps:
        resumed = Path(f'from_{step}', name)
        train(name, resumed, '--resume', str(whole / f'iter_{step}.pth'))
        again = load(resumed / f'iter_{STEPS}.pth')
        assert not (resumed / f'iter_{step}.pth').exists()
        for content in (end, again):     # times and file names
            content.pop('meta', None)
            content.pop('message_hub', None)
        assert differences(end, again) == []
