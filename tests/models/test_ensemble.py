import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from torch.nn.functional import one_hot

import hgd_det.registered  # noqa: F401
from hgd_det.errors import UserError
from hgd_det.models.ensemble import Ensemble, mean_scores
from hgd_det.testing import make_batch, tiny_ssd

CLASSES = ('disc', 'square', 'star')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


@pytest.fixture
def member(tmp_path):
    """A detector with random weights and a file of them."""
    def make(seed, config=None, classes=CLASSES):
        config = config or tiny_ssd()
        torch.manual_seed(seed)
        detector = MODELS.build(ConfigDict(config))
        detector.init_weights()
        path = tmp_path / f'{seed}.pth'
        meta = dict(dataset_meta=dict(classes=classes))
        torch.save(dict(state_dict=detector.state_dict(), meta=meta), path)
        return detector.eval(), dict(config=dict(model=config), checkpoint=str(path))
    return make


def ready(*members):
    model = MODELS.build(dict(type='Ensemble', members=list(members)))
    model.init_weights()
    return model.eval()


@torch.no_grad()
def answers(detector, size=2):
    data = detector.data_preprocessor(make_batch(size), False)
    return [sample.pred_instances for sample in
            detector.predict(data['inputs'], data['data_samples'], rescale=False)]


@torch.no_grad()
def outputs(detector):
    return detector._forward(detector.data_preprocessor(make_batch(2), False)['inputs'])


def test_an_ensemble_of_one_is_its_member_bit_for_bit(member):
    detector, entry = member(0)
    mine, theirs = answers(ready(entry)), answers(detector)
    assert sum(len(each) for each in mine) > 10
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one.scores, other.scores) and torch.equal(one.labels, other.labels)
        assert torch.equal(one.bboxes, other.bboxes)


def test_an_ensemble_of_two_is_the_mean_of_scores_and_deltas_of_each_anchor(member):
    (first, a), (second, b) = member(1), member(2)
    scores, deltas = outputs(ready(a, b))
    for level, of_first, of_second in zip(scores, outputs(first)[0], outputs(second)[0], strict=True):
        images, channels, height, width = level.shape
        for anchor in range(channels // 4):                 # three classes and the background
            part = slice(4 * anchor, 4 * anchor + 4)
            wanted = (of_first[:, part].exp() / of_first[:, part].exp().sum(1, keepdim=True)
                      + of_second[:, part].exp() / of_second[:, part].exp().sum(1, keepdim=True)) / 2
            torch.testing.assert_close(level[:, part].softmax(1), wanted)
    for level, of_first, of_second in zip(deltas, outputs(first)[1], outputs(second)[1], strict=True):
        torch.testing.assert_close(level, (of_first + of_second) / 2)


def test_one_nms_judges_the_mean(member):
    """Mean probabilities handed to the head as their logarithm, which is exact too, give the same boxes."""
    (first, a), (second, b) = member(3), member(4)
    found = answers(ready(a, b))
    (z_first, d_first), (z_second, d_second) = outputs(first), outputs(second)

    def log_mean(x, y):
        n, _, h, w = x.shape
        p = (x.view(n, -1, 4, h, w).softmax(2) + y.view(n, -1, 4, h, w).softmax(2)) / 2
        return p.log().view(n, -1, h, w)

    samples = make_batch(2)['data_samples']
    by_hand = first.bbox_head.predict_by_feat(
        [log_mean(x, y) for x, y in zip(z_first, z_second, strict=True)],
        [(x + y) / 2 for x, y in zip(d_first, d_second, strict=True)],
        batch_img_metas=[sample.metainfo for sample in samples], rescale=False)
    for one, other in zip(found, by_hand, strict=True):
        torch.testing.assert_close(one.scores, other.scores)
        torch.testing.assert_close(one.bboxes, other.bboxes)


def test_three_equal_members_are_one(member):
    detector, entry = member(5)
    for level, mine in zip(outputs(ready(entry, entry, entry))[0], outputs(detector)[0], strict=True):
        torch.testing.assert_close(level, mine)


def test_saturated_logits_have_a_mean():
    sure = [1e4 * (2 * one_hot(torch.tensor([[c]]), 3).float() - 1).view(1, 3, 1, 1) for c in (0, 1)]
    mean = mean_scores(sure, 3)
    assert mean.isfinite().all()
    torch.testing.assert_close(mean.softmax(1).flatten(), torch.tensor([0.5, 0.5, 0.0]))


def test_sigmoid_heads_average_each_class():
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 6, 3, 3, generator=generator, dtype=torch.float64) * 5 for _ in range(3)]
    wanted = sum(z.sigmoid() for z in logits) / 3
    torch.testing.assert_close(mean_scores(logits, 3, sigmoid=True).sigmoid(), wanted)
    assert torch.equal(mean_scores(logits[:1], 3, sigmoid=True), logits[0])


def test_members_may_differ_in_width(member):
    (_, narrow), (_, wide) = member(6), member(7, tiny_ssd(1 / 8))
    assert sum(len(each) for each in answers(ready(narrow, wide))) > 10


def test_a_run_folder_gives_its_newest_checkpoint(tmp_path):
    for step in (1, 2):
        torch.save(dict(state_dict={}, optimizer={}, message_hub={}, meta={}), tmp_path / f'iter_{step}.pth')
    assert Ensemble.checkpoints(dict(members=[dict(checkpoint=str(tmp_path))])) == [tmp_path / 'iter_2.pth']


@pytest.mark.parametrize('other, what', [
    (dict(bbox_head=dict(anchor_generator=dict(min_sizes=[13, 24, 40, 60]))), 'anchors'),
    (dict(bbox_head=dict(bbox_coder=dict(target_stds=[0.2] * 4))), 'box coder'),
    (dict(bbox_head=dict(num_classes=4)), 'classes'),
    (dict(data_preprocessor=dict(mean=[100.0] * 3)), 'normalisation'),
])
def test_members_whose_answers_have_no_mean_are_refused(member, other, what):
    config = Config(dict(model=tiny_ssd()))
    config.merge_from_dict(dict(model=other))
    entries = [member(8)[1], member(9, config.model)[1]]
    with pytest.raises(UserError, match=f'member 2 differs from the first in its .*{what}'):
        MODELS.build(dict(type='Ensemble', members=entries))


def test_other_mistakes_are_refused(member, tmp_path):
    (_, a), (_, b) = member(10), member(11, classes=('a', 'b', 'c'))
    with pytest.raises(UserError, match='members is empty'):
        MODELS.build(dict(type='Ensemble', members=[]))
    with pytest.raises(UserError, match='no detector with one head on anchors'):
        MODELS.build(dict(type='Ensemble', members=[dict(config=dict(type='Distiller', student=tiny_ssd()))]))
    with pytest.raises(UserError, match='does not exist; train the members'):
        ready(dict(a, checkpoint=str(tmp_path / 'none.pth')))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='holds no intact checkpoint'):
        ready(dict(a, checkpoint=str(tmp_path / 'empty')))
    with pytest.raises(UserError, match='trained for the classes a, b, c'):
        ready(a, b)
    with pytest.raises(UserError, match='does not fit the model'):
        ready(dict(a, config=tiny_ssd(1 / 8)))
    with pytest.raises(UserError, match='not trained'):
        ready(a).loss(torch.zeros(1, 3, 96, 96), [])


def test_a_head_of_distributions_is_refused(member):
    config = tiny_ssd()
    config['bbox_head'] |= dict(type='DistributionSSDHead')
    with pytest.raises(UserError, match='something else than scores and four deltas'):
        outputs(ready(member(12, config)[1]))
