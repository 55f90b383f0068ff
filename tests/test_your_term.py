"""The term that docs/your_term.md shows is a term that works."""
import re
from pathlib import Path

import torch
from mmengine.config import ConfigDict

import hgd_det.registered  # noqa: F401
from hgd_det.distill.distiller import Distiller
from hgd_det.distill.registry import TERMS
from hgd_det.distill.schedule import Progress
from hgd_det.testing import make_batch, tiny_ssd

PAGE = Path(__file__).resolve().parent.parent / 'docs' / 'your_term.md'


def test_the_pages_term_trains():
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    code = re.search(r'```python\n# my_attention.py\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 40  # the page's title
    TERMS.module_dict.pop('MyAttention', None)
    exec(compile(code, str(PAGE), 'exec'), {})
    teacher = dict(model=ConfigDict(tiny_ssd(1 / 8)), checkpoint='untrained')
    terms = ConfigDict(attention=dict(type='MyAttention', weight=2.0, warmup=0))
    model = Distiller(ConfigDict(tiny_ssd()), teacher, terms, input_size=96)
    model.init_weights()
    model.train().progress = Progress(0, 10)
    data = model.data_preprocessor(make_batch(), True)
    total, log = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    total.backward()
    assert log['loss_attention'].item() > 0 and log['attention_d_s12'].item() > 0
    assert torch.isfinite(model.student.backbone.features[0].weight.grad).all()
