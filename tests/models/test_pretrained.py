import pytest
import torch
from mmdet.registry import MODELS

from hgd_det.errors import UserError
from hgd_det.models import SlimSSDVGG

TRUNK = 28  # the layers of VGG16 up to conv5_3 are 0 to 28


def vgg(path=None, **kwargs):
    kwargs = dict(depth=16, width=0.05) | kwargs
    init_cfg = None if path is None else dict(type='Pretrained', checkpoint=str(path))
    return SlimSSDVGG(init_cfg=init_cfg, **kwargs)


@pytest.fixture
def source():
    torch.manual_seed(1)
    backbone = vgg()
    backbone.init_weights()
    for parameter in backbone.parameters():
        parameter.data.normal_()
    return backbone


def same(one, other, last=1000):
    return all(torch.equal(value, other.state_dict()[key])
               for key, value in one.state_dict().items() if int(key.split('.')[1]) <= last)


@pytest.mark.parametrize('rename', [
    lambda state: state,
    lambda state: dict(state_dict=state, meta=dict(epoch=1)),
    lambda state: {f'backbone.{k}': v for k, v in state.items()} | {'neck.x': torch.zeros(1)},
    lambda state: {k.removeprefix('features.'): v for k, v in state.items()},
], ids=['mmdet', 'wrapped', 'detector', 'bare'])
def test_every_spread_naming_of_keys_is_loaded_completely(tmp_path, source, rename):
    torch.save(rename(source.state_dict()), tmp_path / 'vgg.pth')
    backbone = vgg(tmp_path / 'vgg.pth')
    assert not same(source, backbone, TRUNK)
    backbone.init_weights()
    assert same(source, backbone)


def test_initialising_through_a_detector_loads_too(tmp_path, source):
    torch.save(source.state_dict(), tmp_path / 'vgg.pth')
    detector = MODELS.build(dict(
        type='SingleStageDetector',
        backbone=dict(type='SlimSSDVGG', depth=16, width=0.05,
                      init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'vgg.pth'))),
        neck=dict(type='SSDNeck', in_channels=[26, 51], out_channels=[26, 51, 8, 8, 8, 8],
                  level_strides=[2, 2, 1, 1], level_paddings=[1, 1, 0, 0]),
        bbox_head=dict(type='SSDHead', num_classes=2, in_channels=[26, 51, 8, 8, 8, 8],
                       anchor_generator=dict(
                           type='SSDAnchorGenerator', scale_major=False, input_size=300,
                           basesize_ratio_range=(0.2, 0.9), strides=[8, 16, 32, 64, 100, 300],
                           ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]]))))
    detector.init_weights()
    assert same(source, detector.backbone)


def test_layers_the_file_lacks_keep_their_random_weights(tmp_path, source):
    state = {key: value for key, value in source.state_dict().items()
             if int(key.split('.')[1]) <= TRUNK}
    torch.save(state, tmp_path / 'vgg.pth')
    backbone = vgg(tmp_path / 'vgg.pth')
    backbone.init_weights()
    assert same(source, backbone, TRUNK) and not same(source, backbone)
    assert backbone.features[31].weight.std() > 0


def test_fc6_and_fc7_are_cut_out_of_a_classifier():
    from hgd_det.models.pretrained import _cut_classifier
    fc6 = torch.arange(4096 * 49.).view(4096, 1, 49).expand(4096, 512, 49).reshape(4096, -1)
    fc7 = torch.arange(4096.)[:, None] * 10000 + torch.arange(4096.)
    cut = _cut_classifier({'classifier.0.weight': fc6, 'classifier.0.bias': torch.arange(4096.),
                           'classifier.3.weight': fc7, 'classifier.3.bias': torch.arange(4096.)},
                          '31', '33')
    with torch.device('meta'):
        wanted = SlimSSDVGG(16).features.state_dict()
    assert {key: value.shape for key, value in cut.items()} == {
        key: wanted[key].shape for key in ('31.weight', '31.bias', '33.weight', '33.bias')}
    # output 1 is the classifier's 4th, its cells are 0, 3, 6 of each axis of the 7x7 window
    assert cut['31.weight'][1, 0].flatten().tolist() == [
        4 * 49 + 7 * y + x for y in (0, 3, 6) for x in (0, 3, 6)]
    assert cut['33.weight'][2, 3].item() == fc7[8, 12]
    assert cut['31.bias'][:3].tolist() == [0, 4, 8]


def test_a_missing_file_says_how_to_give_one_and_how_to_do_without(tmp_path):
    backbone = vgg(tmp_path / 'none.pth')
    with pytest.raises(UserError, match=r'none\.pth.*init_cfg\.checkpoint=PATH.*init_cfg=None'):
        backbone.init_weights()


@pytest.mark.parametrize(('kwargs', 'named'), [
    (dict(width=0.1), r'0\.weight: model \(6, 3, 3, 3\), file \(3, 3, 3, 3\)'),
    (dict(depth=19), 'depth, width and BatchNorm'),
    (dict(with_bn=True), '1.weight'),
])
def test_a_file_of_another_vgg_is_refused_with_the_first_differences(tmp_path, source, kwargs,
                                                                     named):
    torch.save(source.state_dict(), tmp_path / 'vgg.pth')
    with pytest.raises(UserError, match=named):
        vgg(tmp_path / 'vgg.pth', **kwargs).init_weights()


def test_a_file_without_vgg_keys_is_refused(tmp_path):
    torch.save({'layer1.weight': torch.zeros(2)}, tmp_path / 'resnet.pth')
    with pytest.raises(UserError, match='no VGG checkpoint.*layer1.weight'):
        vgg(tmp_path / 'resnet.pth').init_weights()


@pytest.mark.parametrize('content', [b'', b'not a checkpoint', b'PK\x03\x04broken'])
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / 'bad.pth').write_bytes(content)
    with pytest.raises(UserError, match='bad.pth'):
        vgg(tmp_path / 'bad.pth').init_weights()


class Innocent:
    pass


def test_a_file_with_code_in_it_is_not_executed(tmp_path):
    torch.save(dict(state_dict={}, extra=Innocent()), tmp_path / 'code.pth')
    with pytest.raises(UserError, match='(?s)code.pth.*Innocent.*Nothing in it was executed'):
        vgg(tmp_path / 'code.pth').init_weights()
