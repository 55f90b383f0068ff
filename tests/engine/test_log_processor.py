from types import SimpleNamespace

from mmengine.runner import LogProcessor

from hgd_det.engine.log_processor import DistillLogProcessor


def test_stages_of_every_name_stand_on_a_line_of_their_own(monkeypatch):
    tag = {'loss': 3.0, **{f'hgd_{what}_{stage}': value for stage, value in (
        ('s75', .3), ('s19x25', .2), ('s19x10', .1), ('s5_0', .05)) for what in 'du'}}
    monkeypatch.setattr(LogProcessor, 'get_log_after_iter', lambda *_: (
        dict(tag), '  '.join(f'{key}: {value:.4f}' for key, value in tag.items())))
    _, line = DistillLogProcessor(by_epoch=False).get_log_after_iter(SimpleNamespace(), 0, 'train')
    assert line.split('\n') == [
        'loss: 3.0000',
        '    hgd  s75 0.300 u.30 | s19x25 0.200 u.20 | s19x10 0.100 u.10 | s5_0 0.050 u.05']
