"""What a term may do beside comparing maps: teach without a teacher, move targets, train parts of its own."""
import pytest
import torch
from torch import nn

from hgd_det.distill.detection import detection_loss
from hgd_det.distill.head_term import require_ssd
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import Term
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_distiller, make_head_spec, train_step


@TERMS.register_module()
class Alone(Term):
    """The student's own loss once more, on its own output; nobody else is asked."""
    needs = frozenset({'head', 'targets'})
    needs_teacher = False

    def setup(self, spec):
        assert spec.teacher is None and spec.teacher_head is None
        require_ssd('Alone', 'student', spec.student_head)

    def forward(self, lesson):
        self.value = detection_loss(lesson.student.head, lesson.targets, ratio=lesson.neg_pos_ratio)
        return dict(loss=self.value)


@TERMS.register_module()
class Fewer(Term):
    """Only the first positive anchor of each image stays one; the teacher has looked."""
    needs = frozenset({'head', 'targets'})
    keep = 1

    def retarget(self, lesson, targets):
        assert lesson.teacher.head.cls.shape == lesson.student.head.cls.shape
        assert not torch.is_grad_enabled()
        rank = targets.positive.cumsum(1)
        drop = targets.positive & (rank > self.keep)
        return type(targets)(targets.labels.masked_fill(drop, targets.num_classes), targets.label_weights,
                             targets.boxes, targets.box_weights.masked_fill(drop[..., None], 0),
                             targets.num_classes)

    def forward(self, lesson):
        return dict(positives=lesson.targets.positive.sum())


@TERMS.register_module()
class Aside(Term):
    """Trains a weight of its own before it teaches."""
    needs = frozenset({'head'})

    def __init__(self, alone=True):
        super().__init__()
        self.own, self.alone = nn.Parameter(torch.ones(())), alone

    def forward(self, lesson):
        aside = dict(aside_loss=self.own.square())
        return aside if self.alone else aside | dict(loss=lesson.student.head.cls.square().mean())


@TERMS.register_module(name='Broken')
class BreaksTheContract(Term):
    """Returns what it is told to, of the student's scores."""
    needs = frozenset({'head'})
    needs_teacher = False
    answer = staticmethod(lambda scores: dict(loss=scores.mean()))

    def forward(self, lesson):
        return self.answer(lesson.student.head.cls)


def test_a_term_may_do_without_a_teacher():
    model = make_distiller(dict(a=dict(type='Alone')), teacher=False)
    assert model.teacher is None
    _, log = train_step(model, make_batch())
    assert 'teacher_share' not in log
    assert log['loss_a'] == pytest.approx(log['loss_cls'] + log['loss_bbox'], rel=1e-5)
    model.check(100)
    assert model.describe()['pairs'] == []


def test_one_that_needs_a_teacher_says_so_where_there_is_none():
    with pytest.raises(UserError, match=r"model\.teacher is missing: the term 'e' \(Fewer\)"):
        make_distiller(dict(e=dict(type='Fewer')), teacher=False)


def test_reading_a_teacher_one_said_not_to_need_is_named():
    model = make_distiller(dict(e=dict(type='Fewer')))
    model.distill['e'].needs_teacher = False
    with pytest.raises(UserError, match='needs_teacher = False'):
        train_step(model, make_batch())


def test_a_term_may_change_the_targets_the_students_loss_uses(monkeypatch):
    plain, fewer, same = (make_distiller({}), make_distiller(dict(f=dict(type='Fewer'))),
                          make_distiller(dict(f=dict(type='Fewer'))))
    monkeypatch.setattr(same.distill['f'], 'keep', 10 ** 6)
    before, kept, equal = (train_step(m, make_batch())[1] for m in (plain, fewer, same))
    assert kept['f_positives'] == 2
    assert kept['loss_bbox'] != before['loss_bbox'] and kept['loss_cls'] != before['loss_cls']
    assert (equal['loss_bbox'], equal['loss_cls']) == (before['loss_bbox'], before['loss_cls'])
    assert kept['loss_f'] == 0 and 'f_raw' not in kept


def test_targets_may_change_in_a_batch_without_objects():
    plain, fewer = make_distiller({}), make_distiller(dict(f=dict(type='Fewer')))
    for objects in ((0, 0), (0, 2)):
        before, kept = (train_step(m, make_batch(objects=objects))[1] for m in (plain, fewer))
        assert kept['loss_cls'] >= 0 and torch.isfinite(torch.tensor(kept['loss_bbox']))
        if objects == (0, 0):
            assert kept['loss_cls'] == before['loss_cls']


@pytest.mark.parametrize('only', [True, False])
def test_the_loss_of_a_terms_own_parts_has_no_weight(only):
    model = make_distiller(dict(a=dict(type='Aside', alone=only, weight=5.0)))
    total, log = train_step(model, make_batch(), torch.optim.SGD(model.parameters(), 1e-6))
    assert log['loss_a_aside'] == 1 and model.distill['a'].own.grad == 2
    assert ('a_raw' in log) != only
    parts = log['loss_cls'] + log['loss_bbox'] + 1 + (0 if only else 5 * log['a_raw'])
    assert total.item() == pytest.approx(parts, rel=1e-5)


def test_the_balance_does_not_count_it():
    model = make_distiller(dict(a=dict(type='Aside', weight='auto')))
    train_step(model, make_batch())
    assert model.distill['a'].balance.count == 0
    model.distill['a'].alone = False
    _, log = train_step(model, make_batch())
    assert log['loss_a'] == pytest.approx(log['loss_cls'] + log['loss_bbox'], rel=1e-5)


def test_heads_of_another_kind_are_refused():
    with pytest.raises(UserError, match='no softmax scores'):
        require_ssd('Alone', 'student', make_head_spec(None))
    with pytest.raises(UserError, match='no softmax scores'):
        require_ssd('Alone', 'student', None)
    require_ssd('Alone', 'student', make_head_spec(torch.zeros(1, 4)))


@pytest.mark.parametrize('answer, said', [
    (lambda x: x.mean(), r'returned a Tensor; forward\(\) returns a dict of scalars'),
    (lambda x: None, 'returned a NoneType; forward'),
    (lambda x: dict(value=x.mean()), 'returned no loss, only value; one key must contain the word "loss"'),
    (lambda x: {}, 'returned no loss, only nothing'),
    (lambda x: {0: x.mean()}, 'returned the key 0; keys are words'),
    (lambda x: dict(loss=x.detach().mean()), "its 'loss' carries no gradient"),
    (lambda x: dict(loss=torch.zeros(())), "its 'loss' carries no gradient"),
    (lambda x: dict(loss=x.mean(0)), r"returned a tensor of shape \(\d+, 4\) as 'loss'; give a"),
    (lambda x: dict(loss=1.0), "returned a float as 'loss'"),
    (lambda x: dict(loss=x.mean(), share=.5), "returned a float as 'share'")])
def test_what_no_loss_can_be_made_of_is_refused_naming_the_term(answer, said):
    model = make_distiller(dict(b=dict(type='Broken')), teacher=False)
    model.distill['b'].answer = answer
    with pytest.raises(UserError, match=r"^term 'b' \(Broken\):? " + said):
        train_step(model, make_batch())


def test_needs_that_no_lesson_has_are_refused_naming_the_term(monkeypatch):
    monkeypatch.setattr(BreaksTheContract, 'needs', frozenset({'head', 'depth', 'maps'}))
    said = r"^term 'b' \(Broken\) needs 'depth', which no lesson has; .*head, anchors"
    with pytest.raises(UserError, match=said):
        make_distiller(dict(b=dict(type='Broken')), teacher=False)


def test_every_term_calls_itself_what_a_config_calls_it():
    assert not {name: kind.title for name, kind in TERMS.module_dict.items() if kind.title != name}

    class Another(BreaksTheContract):
        """Registered nowhere."""
    assert Another.title == 'Another' and BreaksTheContract.title == 'Broken'
