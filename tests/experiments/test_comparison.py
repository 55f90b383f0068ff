from hgd_det.experiments import comparison
from hgd_det.experiments.tables import Line, Table

PAPER = dict(teacher=76.7, alone=65.6, hint=68.2, hgd=72.6)
LINES = tuple(Line(name, f'{name}.py', paper={'mAP': PAPER[name]}, alone='alone.py' if name[0] == 'h' else '')
              for name in PAPER)
TABLE = Table('4', 'ablation', 'shapes', LINES)


def rows(values, commit='aaa', options=''):
    return {(f'{name}.py', '', options, seed): dict(
        config=f'{name}.py', method='', options=options, seed=str(seed), iterations='500',
        mAP=f'{value / 100:.4f}', mAP_11points=f'{value / 200:.4f}', commit=commit,
        per_class=f'cat={value / 100:.4f} traffic light={value / 200:.4f}')
        for name, each in values.items() for seed, value in enumerate(each)}


def line(text, label):
    return next(each for each in text.splitlines() if each.startswith(label)).split()


def test_means_stand_beside_the_papers_with_spread_seeds_and_gain():
    text = comparison.show(TABLE, rows(dict(teacher=[80], alone=[50, 52], hint=[54, 54], hgd=[60, 61, 62])))
    assert line(text, 'teacher') == ['teacher', '76.7', '80.0', '(1)']
    assert line(text, 'alone') == ['alone', '65.6', '51.0', '±', '1.4', '(2)']
    assert line(text, 'hgd') == ['hgd', '72.6', '+7.0', '61.0', '±', '1.0', '(3)', '+10.0']
    assert "Our order is the paper's in each pair of lines that can be compared (6)." in text
    assert '500 iterations' in text and 'different commits' not in text


def test_another_order_than_the_papers_is_said_and_whether_the_spread_explains_it():
    text = comparison.show(TABLE, rows(dict(alone=[50, 52], hint=[70, 71], hgd=[51, 50])))
    assert 'in 2 of 3 pairs of lines, in 1 of them by more than the spread' in text
    assert 'hint 70.5 ± 0.7 (2) is above hgd 50.5 ± 0.7 (2); paper 72.6 against 68.2' in text
    assert 'within the spread, or of one seed: alone above hgd' in text


def test_one_seed_is_no_clear_disagreement():
    text = comparison.order(TABLE, rows(dict(hint=[70], hgd=[50])))
    assert 'in 1 of 1 pairs of lines, each within the spread of its seeds or measured with one seed' in text


def test_an_order_that_the_paper_only_states_is_compared_too():
    lines = (Line('early', 'hint.py'), Line('all', 'hgd.py'))
    table = Table('1', 'stages', 'shapes', lines, above=(('all', 'early'),), note='a note')
    text = comparison.show(table, rows(dict(hint=[60, 61], hgd=[50, 51])))
    assert 'early 60.5 ± 0.7 (2) is above all 50.5 ± 0.7 (2); the paper states it the other way round' in text
    assert text.endswith('a note')


def test_nothing_measured_is_a_table_all_the_same():
    text = comparison.show(TABLE, {})
    assert line(text, 'hgd') == ['hgd', '72.6', '+7.0'] and 'Too few lines are measured' in text


def test_rows_of_different_commits_are_named():
    text = comparison.show(TABLE, rows(dict(alone=[50])) | rows(dict(hgd=[60, 61]), 'bbb'))
    assert 'The rows are of different commits: bbb (2 rows), aaa (1 row).' in text


def test_options_for_all_cells_choose_their_rows_and_no_others():
    values = rows(dict(alone=[50])) | rows(dict(alone=[10]), options='a=1')
    assert line(comparison.show(TABLE, values), 'alone')[2] == '50.0'
    text = comparison.show(TABLE, values, 'a=1')
    assert line(text, 'alone')[2] == '10.0' and 'with a=1' in text


def test_at_the_papers_scale_the_eleven_points_count():
    text = comparison.show(Table('4', 'ablation', 'voc', LINES), rows(dict(hgd=[60])))
    assert line(text, 'hgd')[3] == '30.0'


def test_coco_has_three_metrics_and_a_table_of_methods_its_classes():
    paper = dict(AP50=32.8, AP75=18.8, mAP=18.7)
    key = ('hgd.py', '', '', 0)
    row = rows(dict(hgd=[17]))[key] | dict(per_class='AP50=0.3000 AP75=0.1600 cat=0.2000')
    table = Table('6', 'COCO', 'coco', (Line('HGD', 'hgd.py', paper=paper),), ('AP50', 'AP75', 'mAP'))
    assert line(comparison.show(table, {key: row}), 'HGD') == [
        'HGD', '32.8', '18.8', '18.7', '30.0', '(1)', '16.0', '(1)', '17.0', '(1)']
    classes = Table('3', 'methods', 'shapes', LINES, classes=True, paper_classes={'hgd': {'cat': 61.0}})
    text = comparison.show(classes, rows(dict(alone=[50, 52], hgd=[60])))
    assert line(text, 'cat') == ['cat', '51.0', '60.0', '(61.0)']
    assert line(text, 'traffic light')[2:] == ['25.5', '30.0']
