import builtins
import collections
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from hgd_det.checkpoint import (
    atomic_save,
    atomic_write,
    load,
    newest_intact,
    replacing,
    trust_checkpoints,
)
from hgd_det.compat.guard import guard_mmengine
from hgd_det.errors import UserError

WEIGHTS = {'a': torch.arange(6.).reshape(2, 3), 'n': torch.tensor(3)}


class Calls:
    """Pickles as a call of `function`: what a hostile checkpoint does."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def victims(folder):
    hit = str(folder / 'hit')
    return {
        'system': (Calls(os.system, f'touch {hit}'), 'posix.system'),
        'mkdir': (Calls(os.mkdir, hit), 'posix.mkdir'),
        'eval': (Calls(builtins.eval, f'open({hit!r}, "w")'), 'builtins.eval'),
        'exec': (Calls(builtins.exec, f'open({hit!r}, "w")'), 'builtins.exec'),
        'popen': (Calls(subprocess.Popen, ['touch', hit]), 'subprocess.Popen'),
        'open': (Calls(open, hit, 'w'), 'open'),
        'getattr': (Calls(getattr, nn.Module, '__init__'), 'Module'),
        'torch.load': (Calls(torch.load, hit), 'torch.serialization.load'),
        'module': (nn.Linear(1, 1), 'torch.nn.modules.linear.Linear'),
        'object array': (np.array([Calls(os.mkdir, hit)], dtype=object), 'posix.mkdir|ObjectDType'),
    }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', list(victims(type('', (), {'__truediv__': lambda *_: ''})())))
def test_a_program_in_a_checkpoint_is_named_and_not_executed(tmp_path, name, zipped):
    content, found = victims(tmp_path)[name]
    path = tmp_path / 'bad.pth'
    torch.save({'state_dict': WEIGHTS, 'meta': content}, path,
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=found) as error:
        load(path)
    assert str(path) in str(error.value) and '--trust-checkpoint' in str(error.value)
    assert not (tmp_path / 'hit').exists()


def test_a_bare_pickle_is_refused_and_not_executed(tmp_path):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / 'bad.pth').write_bytes(pickle.dumps(Calls(os.mkdir, str(tmp_path / 'hit')),
                                                        protocol))
        with pytest.raises(UserError, match='bad.pth'):
            load(tmp_path / 'bad.pth')
    assert not (tmp_path / 'hit').exists()


def test_getattr_reaches_nothing_but_the_methods_mmengine_stores(tmp_path):
    from mmengine.logging import HistoryBuffer
    for owner, name in [(HistoryBuffer, '__init__'), (HistoryBuffer, '__globals__'),
                        (np.ndarray, 'tofile')]:
        torch.save({'x': Calls(getattr, owner, name)}, tmp_path / 'bad.pth')
        with pytest.raises(UserError, match=f"attribute '{name}'"):
            load(tmp_path / 'bad.pth')


def test_trust_is_explicit_and_lets_everything_in(tmp_path):
    torch.save({'x': Calls(os.mkdir, str(tmp_path / 'hit'))}, tmp_path / 'own.pth')
    load(tmp_path / 'own.pth', trust=True)
    assert (tmp_path / 'hit').exists()
    torch.save({'x': Calls(collections.deque)}, tmp_path / 'own.pth')
    trust_checkpoints(True)
    try:
        load(tmp_path / 'own.pth')
    finally:
        trust_checkpoints(False)
    with pytest.raises(UserError, match='deque'):
        load(tmp_path / 'own.pth')


def test_plain_values_and_what_mmengine_writes_come_back_as_they_were(tmp_path):
    from mmengine.logging import HistoryBuffer
    content = {'state_dict': collections.OrderedDict(WEIGHTS), 'f': 1.5, 't': (1, None, True),
               'b': b'x',
               'numpy': [np.float64(.5), np.int64(3), np.arange(3.), np.zeros(2, bool),
                         np.array(['a', 'bc'])],
               'counter': collections.Counter('aab'), 'log': HistoryBuffer([1., 2.], [1, 1])}
    before = set(torch.serialization.get_safe_globals())
    for zipped in (True, False):
        torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
        back = load(tmp_path / 'x.pth')
        assert torch.equal(back['state_dict']['a'], WEIGHTS['a'])
        assert {k: back[k] for k in ('f', 't', 'b', 'counter')} == {k: content[k]
                                                                    for k in ('f', 't', 'b',
                                                                              'counter')}
        for one, other in zip(back['numpy'], content['numpy'], strict=True):
            assert type(one) is type(other) and np.array_equal(one, other)
        assert back['log'].mean() == 1.5
    assert set(torch.serialization.get_safe_globals()) == before


def test_damaged_missing_and_foreign_files_are_named(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'good.pth')
    good = (tmp_path / 'good.pth').read_bytes()
    at = good.index(WEIGHTS['a'].numpy().tobytes())
    torch.save(WEIGHTS, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    old = (tmp_path / 'old.pth').read_bytes()
    for content, message in {
        b'': 'empty',
        good[:-1]: 'truncated or damaged', good[:100]: 'truncated or damaged',
        b'PK': 'truncated or damaged',
        good[:at] + b'\xff' + good[at + 1:]: 'wrong checksum in its part',
        old[:-5]: 'truncated, damaged', old[:30]: 'truncated, damaged',
        b'\x80\x02': 'truncated, damaged',
        b'<!DOCTYPE html><html>': 'not a checkpoint',
        b'version https://git-lfs': 'not a checkpoint',
        bytes(range(256)): 'not a checkpoint',
    }.items():
        (tmp_path / 'bad.pth').write_bytes(content)
        with pytest.raises(UserError, match=message):
            load(tmp_path / 'bad.pth')
    with pytest.raises(UserError, match='does not exist; beside it there is bad.pth, good.pth, '
                                        'old.pth'):
        load(tmp_path / 'godo.pth')
    with pytest.raises(UserError, match='is a folder'):
        load(tmp_path)


def test_every_truncation_is_noticed(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'good.pth')
    good = (tmp_path / 'good.pth').read_bytes()
    for size in range(0, len(good), 37):
        (tmp_path / 'bad.pth').write_bytes(good[:size])
        with pytest.raises(UserError):
            load(tmp_path / 'bad.pth')


def test_other_archives_and_other_contents_are_told_apart(tmp_path):
    path = tmp_path / 'x.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('notes.txt', 'x')
    with pytest.raises(UserError, match='no data.pkl'):
        load(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('../../data.pkl', 'x')
    with pytest.raises(UserError, match='lies outside'):
        load(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('x/data.pkl', bytes(1 << 20))
    with pytest.raises(UserError, match='compressed archive'):
        load(path)
    torch.jit.script(nn.Linear(1, 1)).save(str(path))
    with pytest.raises(UserError, match='TorchScript'):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(UserError, match='holds a list'):
        load(path)


def test_safetensors_are_read_and_their_damage_named(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'x.safetensors'
    safetensors.save_file(WEIGHTS, path)
    assert torch.equal(load(path)['a'], WEIGHTS['a'])
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match='truncated or damaged'):
        load(path)


def test_mmengine_itself_reads_through_the_loader(tmp_path):
    guard_mmengine()
    torch.save({'x': Calls(os.mkdir, str(tmp_path / 'hit'))}, tmp_path / 'bad.pth')
    with pytest.raises(UserError, match='posix.mkdir'):
        mmengine_checkpoint.CheckpointLoader.load_checkpoint(str(tmp_path / 'bad.pth'))
    assert not (tmp_path / 'hit').exists()
    for address in ('s3://bucket/x.pth', 'open-mmlab://no/such/model', 'http://127.0.0.1:9/x.pth'):
        with pytest.raises(UserError, match=address):
            mmengine_checkpoint.CheckpointLoader.load_checkpoint(address)


# ----------------------------------------------------------------------------------------- writing
def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / 'new' / 'x.pth'
    atomic_save(WEIGHTS, path)
    assert torch.equal(load(path)['a'], WEIGHTS['a'])
    before = path.read_bytes()
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b'half')
        raise KeyError
    assert path.read_bytes() == before
    atomic_write('text', path)
    assert path.read_text() == 'text' and os.listdir(path.parent) == ['x.pth']


def resumable(path, age, **more):
    torch.save({'meta': {}, 'message_hub': {}, 'optimizer': {}, 'state_dict': WEIGHTS, **more},
               path)
    os.utime(path, (age, age))


def test_the_newest_intact_checkpoint_is_found_and_the_skipped_are_named(tmp_path):
    assert newest_intact(tmp_path) == (None, [])
    assert newest_intact(tmp_path / 'missing') == (None, [])
    resumable(tmp_path / 'epoch_1.pth', 1000)
    resumable(tmp_path / 'epoch_2.pth', 2000)
    resumable(tmp_path / 'best_voc_mAP_epoch_2.pth', 5000)
    torch.save(WEIGHTS, tmp_path / 'epoch_3.pth')
    (tmp_path / 'epoch_4.pth').write_bytes(b'')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_4.pth'))
    path, skipped = newest_intact(tmp_path)
    assert path == tmp_path / 'epoch_2.pth'
    assert len(skipped) == 2 and 'empty' in ''.join(skipped) and 'weights only' in ''.join(skipped)


def test_a_checkpoint_kept_elsewhere_is_named_and_not_followed(tmp_path):
    (tmp_path / 'run').mkdir()
    resumable(tmp_path / 'final.pth', 1000)
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'final.pth'))
    found, (reason,) = newest_intact(tmp_path / 'run')
    assert found is None and str(tmp_path / 'final.pth') in reason and 'give that file itself' in reason
