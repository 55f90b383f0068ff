"""What goes wrong in a run is named, and stops it where that is asked."""
from types import SimpleNamespace

import pytest
import torch

from hgd_det.engine.health import HealthHook, sick_maps
from hgd_det.errors import RunError, UserError
from hgd_det.testing import make_distiller


class Run(SimpleNamespace):
    """As much of a runner as the hook reads."""

    def __init__(self, hook, model=None):
        self.said = []
        logger = SimpleNamespace(warning=self.said.append)
        super().__init__(iter=0, model=model, logger=logger, hook=hook)

    def step(self, **values):
        self.hook.after_train_iter(self, self.iter, outputs={k: torch.tensor(v) for k, v in values.items()})
        self.iter += 1


def sound(**more):
    return dict(loss=3.0, loss_cls=2.0, loss_hgd=1.0, hgd_raw=0.5, hgd_weight=2.0) | more


def test_a_sound_run_is_let_alone():
    run = Run(HealthHook())
    for _ in range(300):
        run.step(**sound())
    run.hook.after_train(run)
    assert run.said == []


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_loss_that_is_no_number_stops_the_run_with_its_term_and_iteration(bad):
    run = Run(HealthHook(interval=5))
    for _ in range(7):
        run.step(**sound())
    run.step(**sound(loss_hgd=bad, loss=bad))
    with pytest.raises(RunError, match=rf"at iteration 8 loss_hgd is {bad}.*'loss_cls': 2\.0"):
        for _ in range(5):
            run.step(**sound())
    assert run.iter == 9  # noticed at the tenth


def test_no_checkpoint_is_written_of_a_run_that_went_wrong():
    run = Run(HealthHook(interval=100))
    run.step(**sound(loss_cls=float('nan')))
    with pytest.raises(RunError, match='loss_cls is nan'):
        run.hook.before_save_checkpoint(run, dict(state_dict={}))
    with pytest.raises(RunError, match=r'weights are NaN.*head\.w'):
        HealthHook().before_save_checkpoint(run, dict(state_dict={
            'head.w': torch.tensor([1.0, float('nan')]), 'count': torch.tensor(1)}))


def test_a_warning_is_said_once_and_the_run_goes_on():
    run = Run(HealthHook(nonfinite='warn', interval=1))
    for _ in range(3):
        run.step(**sound(loss_cls=float('nan')))
    assert len(run.said) == 1
    ignoring = Run(HealthHook(nonfinite='ignore', interval=1))
    ignoring.step(**sound(loss_cls=float('nan')))
    assert ignoring.said == []


def test_a_term_that_explodes_is_named_with_its_factor():
    run = Run(HealthHook(interval=1))
    for _ in range(60):
        run.step(**sound())
    run.step(**sound(loss_hgd=150.0))
    assert len(run.said) == 1 and "'hgd' was 150 at iteration 61, 150 times" in run.said[0]
    quiet = Run(HealthHook(interval=1))      # a small term may grow, as in a ramp
    for i in range(60):
        quiet.step(**sound(loss_hgd=1e-6 if i < 55 else 1e-3))
    assert quiet.said == []


def test_a_term_that_stays_zero_is_named():
    run = Run(HealthHook(patience=20))
    for _ in range(40):
        run.step(**sound(hgd_raw=0.0, loss_hgd=0.0))
    assert len(run.said) == 1 and "'hgd' has been exactly 0 for 20 iterations, up to 20" in run.said[0]
    broken = Run(HealthHook(patience=20))    # batches without objects in between are no reason
    for i in range(60):
        broken.step(**sound(hgd_raw=float(i % 19 == 0)))
    assert broken.said == []


def test_choices_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="silent='shout'; choose one of stop, warn, ignore"):
        HealthHook(silent='shout')
    with pytest.raises(UserError, match='count iterations'):
        HealthHook(interval=0)


def test_sick_teacher_maps_are_named_with_their_tap():
    model = make_distiller(dict(hint=dict(type='Hint', weight=1.0), kd=dict(type='LogitKD')))
    images = torch.randn(2, 3, 96, 96)
    assert sick_maps(model, images, []) == []
    taps = model.distill['hint'].teacher_taps
    scale = model.teacher.detector.neck.l2_norm.weight
    sound_scale = scale.detach().clone()
    for value, what in ((0.0, '0 everywhere'), (float('nan'), 'not finite')):
        scale.data.fill_(value)
        assert (('hint', taps[0], what)) in sick_maps(model, images, [])
    scale.data.copy_(sound_scale)
    for parameter in model.teacher.detector.backbone.parameters():
        parameter.data.zero_()
    assert {what for _, _, what in sick_maps(model, images, [])} <= {
        '0 everywhere', 'the same in every cell of every image'}
    assert len(sick_maps(model, images, [])) >= len(taps) - 1


def test_a_dead_teacher_is_reported_at_the_first_step_only():
    from hgd_det.testing import make_batch
    model = make_distiller(dict(hint=dict(type='Hint', weight=1.0)))
    model.teacher.detector.neck.l2_norm.weight.data.zero_()
    run = Run(HealthHook(), model)
    before = torch.get_rng_state()
    for _ in range(2):
        run.hook.before_train_iter(run, 0, make_batch())
    assert torch.equal(before, torch.get_rng_state())
    assert len(run.said) == 1 and "term 'hint': the teacher map" in run.said[0]
    with pytest.raises(RunError):
        HealthHook(dead='stop').before_train_iter(run, 0, make_batch())


def test_every_run_is_watched_and_ends_with_status_one(hgd, tmp_path, capsys):
    assert hgd('train', '--work-dir', tmp_path, options=['optim_wrapper.optimizer.lr=1e30',
               'param_scheduler=None', 'optim_wrapper.clip_grad=None']) == 1
    said = capsys.readouterr().err
    assert 'error: ' in said and 'Traceback' not in said and ('is nan' in said or 'weights are NaN' in said
                                                              or 'is inf' in said)
