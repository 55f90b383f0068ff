import pytest

from hgd_det.errors import UserError
from hgd_det.experiments.cells import Cell, teacher_of
from hgd_det.experiments.tables import NAMES, SCALES, table
from hgd_det.paths import names, read_config
from hgd_det.training.runner import load_config

pytestmark = pytest.mark.thorough

TRAINED = ('teacher', 'student alone', 'teacher, distribution head', 'student alone, distribution head')


def every():
    for name in NAMES:
        for scale in SCALES:
            try:
                yield table(name, scale)
            except UserError:
                pass


TABLES = list(every())


def test_each_table_of_the_paper_is_there_at_the_papers_scale():
    assert [table(name).scale for name in NAMES] == ['voc', 'voc', 'voc', 'voc', 'voc', 'coco', 'voc']


@pytest.mark.parametrize('one', TABLES, ids=lambda one: f'{one.name}-{one.scale}')
def test_its_configs_and_methods_exist_and_its_lines_are_told_apart(one):
    assert all(read_config(line.config, line.method) for line in one.lines)
    assert len({line.label for line in one.lines}) == len(one.lines)
    assert len({(line.config, line.method, line.options) for line in one.lines}) == len(one.lines)
    plain = {line.config for line in one.lines if not line.method}
    for line in one.lines:
        assert not line.alone or line.alone in plain
        assert (teacher_of(line.config, line.method) or next(iter(plain))) in plain


@pytest.mark.parametrize('name', ['1', '2', '4'])
def test_the_shapes_have_what_the_paper_has_as_options_of_one_config(name):
    """Each cell at the paper's scale and its twin have the same settings of HGD."""
    for large, small in zip(lines(name, 'voc'), lines(name, 'shapes'), strict=False):
        if large.label != small.label:
            assert name == '1'    # other sizes
            continue
        mine, theirs = (dict(load_config(line.config, line.options.split(), line.method).model.terms.hgd)
                        for line in (small, large))
        free = {'weight', 'ratio', 'warmup', 'average', 'sizes'}
        defaults = dict(distance='cosine', select='source')
        assert [{**defaults, **{key: value for key, value in hgd.items() if key not in free}}
                for hgd in (mine,)] == [
            {**defaults, **{key: value for key, value in theirs.items() if key not in free}}], large.label


def lines(name, scale):
    return [line for line in table(name, scale).lines if line.method == 'hgd']


def test_equal_settings_are_one_cell():
    at = {label: next((line.config, line.method, line.options) for line in table(name, 'shapes').lines
                      if line.label == label) for name, label in
          (('1', 'all stages'), ('4', '+ selection: last of each stage'), ('4', 'all together'),
           ('2', 'variance + ground truth'), ('3', 'HGD'))}
    assert at['all stages'] == at['+ selection: last of each stage']
    assert at['all together'] == at['variance + ground truth'] == at['HGD'] == ('shapes', 'hgd', '')


def test_methods_are_all_there_are_each_against_the_student_with_its_head():
    by_label = {line.label: line for line in table('methods', 'shapes').lines}
    assert set(by_label) == {*names('methods'), *TRAINED}
    assert by_label['ld'].alone == by_label['combined'].alone == 'shapes/ld_student'
    assert by_label['hgd'].alone == 'shapes/student' and by_label['hgd'].paper == {'mAP': 72.6}
    assert by_label[TRAINED[2]].single and not by_label[TRAINED[3]].single
    assert {line.label for line in table('methods', 'bccd').lines} == {
        *TRAINED, 'hint', 'chen', 'ld', 'hgd'}


def test_the_papers_rows_by_class_have_its_mean():
    three = table('3')
    paper = {line.label: line.paper['mAP'] for line in three.lines}
    for label, classes in three.paper_classes.items():
        if len(classes) == 20:
            assert abs(sum(classes.values()) / 20 - paper[label]) < 0.06, label


@pytest.mark.parametrize('name, scale, message', [
    ('7', None, "table '7'; there are 1, 2"), ('6', 'shapes', '--scale coco'), ('1', 'bccd', '"methods"')])
def test_a_table_that_is_not_there_is_refused(name, scale, message):
    with pytest.raises(UserError, match=message):
        table(name, scale)


def test_cells_have_folders_of_their_own():
    cells = {Cell(line.config, line.method, line.options, seed)
             for one in TABLES for line in one.lines for seed in (0, 1)}
    folders = {cell.name for cell in cells}
    assert len(folders) == len(cells) and max(map(len, folders)) < 200
    assert not any(set(name) & set('[]=/ ') for name in folders)
    assert Cell('shapes', 'hgd').name == 'shapes-hgd_0'
    assert Cell('shapes', 'hgd', 'model.terms.hgd.macro=none', 2).name.startswith(
        'shapes-hgd_macro-none_')
