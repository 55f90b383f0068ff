"""Who is who, and what distillation brought."""
import pytest

from hgd_det.report.cast import cast, gain, leading, method, role
from hgd_det.report.runs import read_run


def test_roles_follow_from_the_configs_in_any_order(trio):
    members = cast([read_run(folder) for folder in reversed(trio)])
    assert [(each.name, each.role) for each in members] == [
        ('big', 'teacher'), ('alone', 'alone'), ('taught', 'distilled')]
    assert [each.method for each in members] == ['', '', 'HGD'] and len({e.colour for e in members}) == 3


def test_of_several_students_the_best_one_stands_for_all(trio, make_run):
    from tests.report.conftest import DISTILLED, evaluation
    best = make_run('best', [[{'iter': 20}, evaluation(0.6)]], DISTILLED, 'hgd.py')
    none = make_run('none', [[{'iter': 20}]], DISTILLED, 'hgd.py')
    members = cast([read_run(folder) for folder in (*trio, none, best)])
    assert leading(members, 'distilled').name == 'best' and leading(members[:1], 'alone') is None


def test_without_a_distilled_run_nobody_is_a_teacher(trio):
    runs = [read_run(folder) for folder in trio[:2]]
    assert [role(run, runs) for run in runs] == ['alone', 'alone'] and method(runs[0]) == ''


def test_gain_and_share_are_measured_from_the_student_of_the_same_build(trio):
    members = cast([read_run(folder) for folder in trio])
    got = gain(members[2], members)
    assert (got.alone, got.teacher) == (0.4, 0.8)
    assert got.points == pytest.approx(0.1) and got.share == pytest.approx(0.25)
    assert gain(members[0], members).points is None


def test_a_student_of_another_build_is_no_baseline(trio, make_run):
    from tests.report.conftest import STUDENT, evaluation
    wide = make_run('wide', [[{'iter': 20}, evaluation(0.7)]], STUDENT.replace('width=1', 'width=3'))
    members = cast([read_run(folder) for folder in (trio[0], wide, trio[2])])
    assert gain(members[-1], members).points is None


def test_a_teacher_is_known_by_its_folder_too(trio, make_run):
    from tests.report.conftest import DISTILLED, TEACHER
    folder = make_run('moved', [[{'iter': 20}]], TEACHER, 'renamed.py')
    config = DISTILLED.replace("checkpoint='x'", f"checkpoint='{folder}/a.pth'")
    taught = make_run('other', [[{'iter': 20}]], config, 'hgd.py')
    assert role(read_run(folder), [read_run(folder), read_run(taught)]) == 'teacher'
