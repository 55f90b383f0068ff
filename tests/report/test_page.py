"""The page as a whole: what is in it, what is left out, and that it needs nothing else."""
import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from hgd_det.errors import UserError
from hgd_det.report.page import write_report
from hgd_det.report.runs import Run
from hgd_det.report.sections import stage_series
from tests.report.conftest import DISTILLED, evaluation

pytestmark = pytest.mark.slow

VOID = {'meta', 'link', 'img', 'br', 'wbr', 'col'}


class Outline(HTMLParser):
    """Checks that elements are nested well; keeps tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope='session')
def report(family, tmp_path_factory):
    """The page of three tiny detectors that were trained for four steps."""
    # who imitates whom: the teacher's config is no file of the project, and only run where it is trusted
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('hgd_det.checkpoint._trusted', True)
        return write_report(family, tmp_path_factory.mktemp('page') / 'report.html', images=2, score=0.05)


@pytest.mark.slow
def test_the_page_of_real_runs_has_every_section(report):
    text = report.read_text()
    outline = Outline(text)
    places = [attributes['id'] for tag, attributes in outline.seen if tag == 'section']
    assert places[:9] == ['result', 'views', 'classes', 'errors', 'training', 'stages', 'pairs', 'speed',
                          'settings']
    assert sum(tag == 'table' for tag, _ in outline.seen) >= 5
    assert {f'#{place}' for place in places} >= {a['href'] for tag, a in outline.seen if tag == 'a'}
    assert report.stat().st_size < 2e6


def test_the_page_needs_nothing_from_outside(report):
    text = report.read_text()
    links = [value for tag, attributes in Outline(text).seen for key, value in attributes.items()
             if key in ('src', 'href', 'srcset', 'data')]
    assert links and all(link.startswith(('data:', '#')) for link in links)
    assert not re.search(r'url\(|@import|<script', text)


def test_every_picture_is_one_and_is_described(report):
    images = [attributes for tag, attributes in Outline(report.read_text()).seen if tag == 'img']
    assert len(images) == 2 * 3 * 4    # images, detectors, the boxes and three stages
    for image in images:
        data = base64.b64decode(image['src'].partition('base64,')[2])
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
        assert re.search(r'(Stage \d+x\d+|boxes) of (big|trained\d*|taught)', image['alt'])


def test_logs_alone_make_a_page_that_says_what_is_missing(trio, tmp_path):
    text = write_report(trio, tmp_path / 'r.html', models=False).read_text()
    places = [attributes['id'] for tag, attributes in Outline(text).seen if tag == 'section']
    assert places == ['result', 'classes', 'training', 'stages', 'settings', 'missing']
    assert '<h1>HGD lifts the student from 40.0 to 50.0 mAP, 25% of the way to its teacher</h1>' in text
    assert 'the models were not opened' in text and 'each run was evaluated once' in text
    assert '<b>+10.0</b>' in text and '<td>25%</td>' in text
    assert '2 of 2 classes are found better after distillation: from disc (+15.0) to star (+5.0)' in text
    assert 'At the end: big 1.5, alone 3.5, taught 2.5.' in text    # without the term's loss of 3


def test_a_distillation_that_did_not_help_is_not_called_a_success(trio, make_run, tmp_path):
    worse = make_run('worse', [[{'iter': 20}, evaluation(0.35)]], DISTILLED, 'hgd.py')
    text = write_report([*trio[:2], worse], tmp_path / 'r.html', models=False).read_text()
    assert '<h1>HGD did not help: 35.0 mAP, where the student alone reaches 40.0</h1>' in text
    assert '<b>−5.0</b>' in text and 'Not trained to the end: worse.' in text


def test_names_are_text_and_never_markup(make_run, tmp_path):
    folder = make_run('<b>x', [[{'iter': 20, 'loss_cls': 1.0}, evaluation(0.5, **{'<i>': 0.5})]])
    text = write_report([folder], tmp_path / 'r.html', models=False).read_text()
    Outline(text)
    assert '<b>x' not in text and '<i>' not in text and '&lt;i&gt;' in text


def test_a_run_without_checkpoint_or_data_still_has_its_page(trio, tmp_path):
    text = write_report(trio, tmp_path / 'r.html').read_text()
    assert 'Big could not be opened: no checkpoint in its folder.' in text
    assert 'Who imitates whom in taught is not known' in text and 'id="result"' in text


def test_latencies_come_from_a_benchmark_where_one_is_given(family, tmp_path):
    from hgd_det.checkpoint import sha256
    from hgd_det.report.runs import read_run
    paths = [read_run(folder).checkpoint for folder in family]
    models = [dict(model=f'm{i}', sha256=sha256(path)) for i, path in enumerate(paths)]
    models.append(dict(model='onnx', sha256='0', metrics={'voc/mAP': 0.123}))
    times = [dict(model=each['model'], batch=batch, threads=1, median_ms=100 * batch + i)
             for i, each in enumerate(models) for batch in (1, 8)]
    bench = tmp_path / 'bench.json'
    bench.write_text(json.dumps(dict(models=models, times=times)))
    text = write_report(family, tmp_path / 'r.html', images=0, bench=bench).read_text()
    assert '<td>101.0</td>' in text and '<td>102.0</td>' in text
    assert 'hgd-det bench, batch 1, 1 thread' in text
    assert 'onnx: 103.0 ms, 12.3 mAP' in text
    bench.write_text('{}')
    with pytest.raises(UserError, match='no JSON of hgd-det bench'):
        write_report(family, tmp_path / 'r.html', images=0, bench=bench, force=True)


def test_the_same_run_twice_and_equal_names_are_refused(trio, make_run, tmp_path):
    with pytest.raises(UserError, match='given twice'):
        write_report([trio[0], trio[0]], tmp_path / 'r.html')
    with pytest.raises(UserError, match="two runs are called 'big'"):
        write_report([trio[0], make_run('other/big', [[{'iter': 20}]])], tmp_path / 'r.html')


def test_stages_of_every_name_have_a_line_the_largest_first():
    stages = {'hgd_d_s9': .1, 'hgd_d_s19x25': .2, 'hgd_d_s19x10': .3, 'hgd_d_s75_1': .4}
    run = Run(Path(), train=[{'iter': i, **stages} for i in (20, 40)])
    assert [each.name for each in stage_series(run, 'hgd', 'd')] == [
        'stage 75_1', 'stage 19x25', 'stage 19x10', 'stage 9']
