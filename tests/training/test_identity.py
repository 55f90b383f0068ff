from types import SimpleNamespace

from hgd_det.checkpoint import load, sha256
from hgd_det.training.identity import DataIdentityHook, data_lists


def test_the_lists_inside_any_wrapping_are_found(tmp_path):
    for name in 'ab':
        (tmp_path / name).write_text(name)
    leaves = [SimpleNamespace(ann_file=str(tmp_path / name)) for name in 'ab']
    wrapped = SimpleNamespace(dataset=SimpleNamespace(datasets=leaves))
    assert data_lists(wrapped) == {str(tmp_path / name): sha256(tmp_path / name) for name in 'ab'}
    assert data_lists(SimpleNamespace(ann_file='')) == {} == data_lists([1, 2])


def test_a_checkpoint_carries_the_data_and_a_changed_list_is_reported(hgd, config, tmp_path, monkeypatch):
    assert hgd('train', '--work-dir', tmp_path, '--no-validate', options=['train_cfg.max_iters=2']) == 0
    (path, digest), = load(tmp_path / 'iter_2.pth')['meta']['data'].items()
    assert path.endswith('trainval.txt') and len(digest) == 64 and digest == sha256(path)

    logger = SimpleNamespace(warning=lambda text: said.append(text))
    runner = SimpleNamespace(_resume=True, logger=logger, train_dataloader=SimpleNamespace(
        dataset=SimpleNamespace(ann_file=path)))
    for data, expected in (({path: digest}, 0), ({path: 'other'}, 1), (None, 0), ({'elsewhere': digest}, 0)):
        said = []
        DataIdentityHook().after_load_checkpoint(runner, dict(meta=dict(data=data)))
        assert len(said) == expected
    runner._resume, said = False, []
    DataIdentityHook().after_load_checkpoint(runner, dict(meta=dict(data={path: 'other'})))
    assert said == []
