"""INT8 changes the convolutions and nothing else."""
import json

import numpy as np
import pytest

from hgd_det.cli.main import main
from hgd_det.deploy.quantize import in_8_bits, quantize
from hgd_det.deploy.runtime import open_model
from hgd_det.deploy.verify import match
from hgd_det.errors import UserError

pytestmark = pytest.mark.slow

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

IMAGES = [np.random.default_rng(i).integers(0, 256, (60 + 9 * i, 120, 3), dtype=np.uint8) for i in range(4)]


@pytest.fixture(scope='module')
def int8(onnx_raw, onnx_nms, tmp_path_factory):
    """The INT8 forms, by name."""
    folder = tmp_path_factory.mktemp('int8')
    for path in (onnx_raw, onnx_nms):
        quantize(path, folder / path.name, IMAGES)
    return {'raw': folder / onnx_raw.name, 'nms': folder / onnx_nms.name}


def operators(path) -> dict[str, str]:
    """Node by output."""
    return {node.output[0]: node for node in onnx.load(path).graph.node}


def test_raw_outputs_stay_near_those_of_the_float_file(onnx_raw, int8):
    before, after = open_model(onnx_raw), open_model(int8['raw'])
    batch = np.stack([before.resize(image) for image in IMAGES])
    boxes, scores = before.raw(batch)
    boxes8, scores8 = after.raw(batch)
    for one, other in ((scores, scores8), (boxes, boxes8)):
        assert not np.array_equal(one, other)
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9    # random weights exaggerate


def test_a_file_with_nms_finds_what_its_raw_form_finds(int8):
    raw, nms = open_model(int8['raw']), open_model(int8['nms'])
    for one, other in zip(raw(IMAGES), nms(IMAGES), strict=True):
        assert len(one.scores) > 5
        assert np.allclose(one.scores, other.scores, atol=1e-5)
        # 8 bits give equal scores, which may change places, the last one with one that is left out
        assert match(one, other)[2] <= 2


def test_every_convolution_but_the_first_reads_8_bits_and_nothing_outside_the_network_does(onnx_nms, int8):
    nodes = operators(int8['nms'])
    first, *convolutions = [node for node in nodes.values() if node.op_type == 'Conv']
    assert len(convolutions) + 1 == sum(n.op_type == 'Conv' for n in operators(onnx_nms).values()) > 10
    assert 'DequantizeLinear' not in {nodes[name].op_type for name in first.input if name in nodes}
    for node in convolutions:
        assert {nodes[name].op_type for name in node.input[:2]} == {'DequantizeLinear'}
    kinds = {nodes[name].op_type for node in nodes.values() if node.op_type == 'QuantizeLinear'
             for name in node.input[:1] if name in nodes}
    assert kinds <= {'Conv', 'Relu', 'MaxPool', 'Div', 'Mul'}    # Div, Mul: the neck's normalised map
    softmax, suppression = (next(n for n in nodes.values() if n.op_type == kind)
                            for kind in ('Softmax', 'NonMaxSuppression'))
    assert nodes[softmax.input[0]].op_type != 'DequantizeLinear'
    assert nodes[suppression.input[0]].op_type != 'DequantizeLinear'


def test_weights_have_a_scale_per_channel(int8):
    graph = onnx.load(int8['raw']).graph
    scales = {init.name: init.dims for init in graph.initializer if init.name.endswith('weight_scale')}
    assert len(scales) > 10 and all(len(dims) == 1 for dims in scales.values())


def test_the_file_is_smaller_and_keeps_what_the_export_noted(onnx_raw, int8):
    def noted(path):
        return {entry.key: json.loads(entry.value) for entry in onnx.load(path).metadata_props}
    assert int8['raw'].stat().st_size < onnx_raw.stat().st_size
    before = noted(onnx_raw)['hgd_det']
    assert noted(int8['raw']) == {'hgd_det': before | dict(precision='int8', int8=dict(images=4))}


def test_no_more_images_are_taken_than_the_limit(onnx_raw, tmp_path):
    taken = []
    quantize(onnx_raw, tmp_path / 'out.onnx', (taken.append(1) or image for image in IMAGES * 9), limit=2)
    assert len(taken) == 2


def test_what_follows_the_first_convolution_or_lies_outside_the_network_stays_float():
    graph = onnx.parser.parse_graph('''
        g (float[1,3,8,8] x) => (float[1,3,4,4] y) {
            [first] a = Conv (x, v)
            [relu] b = Relu (a)
            [second] c = Conv (b, w)
            [six] d = Clip (c)
            [pool] e = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (d)
            [scale] f = Exp (e)
            [clamp] y = Clip (f)
        }''')
    assert in_8_bits(graph) == ['second', 'six', 'pool']


def test_what_cannot_be_quantised_is_refused_with_a_reason(checkpoint, onnx_raw, int8, tmp_path):
    out = tmp_path / 'out.onnx'
    for given, images, reason in (
            (checkpoint, IMAGES, 'is not an ONNX file'),
            (tmp_path / 'none.onnx', IMAGES, 'does not exist'),
            (int8['raw'], IMAGES, 'is int8 already'),
            (onnx_raw, [], 'no image to calibrate with')):
        with pytest.raises(UserError, match=reason):
            quantize(given, out, images)
    stranger = onnx.load(onnx_raw)
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / 'stranger.onnx')
    with pytest.raises(UserError, match='was not written by hgd-det export'):
        quantize(tmp_path / 'stranger.onnx', out, IMAGES)
    assert not out.exists()


def test_the_verb_calibrates_on_a_folder_and_says_what_became_smaller(onnx_raw, tmp_path, capsys):
    import cv2
    (tmp_path / 'images').mkdir()
    for i, image in enumerate(IMAGES):
        cv2.imwrite(str(tmp_path / f'images/{i}.png'), image)
    (tmp_path / 'images/broken.jpg').write_bytes(b'no image')
    out = tmp_path / 'out.onnx'
    assert main(['quantize', str(onnx_raw), str(out), '--images', str(tmp_path / 'images')]) == 0
    said = capsys.readouterr()
    assert 'calibrated on 4 images' in said.out and 'broken.jpg is left out' in said.err
    assert open_model(out)(IMAGES)
    assert main(['quantize', str(out), str(out), '--images', str(tmp_path / 'images')]) == 2
    assert 'would overwrite' in capsys.readouterr().err
    again = str(tmp_path / 'again.onnx')
    assert main(['quantize', str(out), again, '--images', str(tmp_path / 'images')]) == 2
    assert 'is int8 already' in capsys.readouterr().err


def test_a_folder_without_a_readable_image_is_refused(onnx_raw, tmp_path, capsys):
    (tmp_path / 'a.jpg').write_bytes(b'no image')
    assert main(['quantize', str(onnx_raw), str(tmp_path / 'o.onnx'), '--images', str(tmp_path)]) == 2
    assert 'none of the images can be read' in capsys.readouterr().err
