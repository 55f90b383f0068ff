"""One weight that is no number, and the detector finds nothing: it is named wherever weights come in."""
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hgd_det.checkpoint import load
from hgd_det.cli.main import main
from hgd_det.deploy.postprocess import Settings, detections
from hgd_det.deploy.runtime import Model, finite
from hgd_det.deploy.verify import compare
from hgd_det.errors import RunError, UserError
from hgd_det.weights import load_into, refuse_not_finite

pytestmark = pytest.mark.thorough

ENTRANCES = {
    'test': 'test {config} bad.pth --work-dir work',
    'test of an ensemble': 'test ensemble.py --work-dir work',
    'predict': 'predict bad.pth {image} --out out',
    'predict with a config': 'predict bad.safetensors {image} --out out --config {config}',
    'export': 'export {config} bad.pth out',
    'export auto': 'export auto bad.pth out --verify {image}',
    'bench': 'bench bad.pth',
    'features': 'features auto bad.pth {image} --out out',
    'a teacher': 'doctor {distill} --images 1 --cfg-options model.teacher.checkpoint=bad.pth '
                 'model.teacher.model={config}',
    'a teacher in training': 'train {distill} --work-dir work --cfg-options model.teacher.checkpoint=bad.pth '
                             'model.teacher.model={config}',
    'a peer': 'doctor {distill} --images 1 --cfg-options model.terms.dml.type=DML '
              'model.terms.dml.peer={config} model.terms.dml.checkpoint=bad.pth',
    'where training starts from': 'train {config} --work-dir work --cfg-options load_from=bad.pth',
    'where training goes on': 'train {config} --work-dir work --resume bad.pth',
}


def first(state) -> str:
    return next(key for key, value in state.items() if value.is_floating_point() and value.numel() > 4)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('entrance', ENTRANCES)
def test_weights_that_are_not_finite_are_named(entrance, value, sound, tmp_path, monkeypatch, capfd):
    if value < 0 and entrance not in ('test', 'predict'):
        pytest.skip('as inf')
    monkeypatch.chdir(tmp_path)
    content = dict(load(sound.student))
    state = content['state_dict']
    key = first(state)
    state[key] = state[key].clone()
    state[key].view(-1)[2] = value
    torch.save(content, 'bad.pth')
    from safetensors.torch import save_file
    save_file(dict(state), 'bad.safetensors')
    mine = str(sound.config)
    Path('ensemble.py').write_text(f'_base_ = {mine!r}\nmodel = dict(_delete_=True, type="Ensemble", '
                                   f'members=[dict(config={mine!r}, checkpoint="bad.pth")])\n')
    capfd.readouterr()
    status = main(ENTRANCES[entrance].format(**vars(sound)).split())
    said = capfd.readouterr()
    said = said.out + said.err
    assert status in (1, 2) and 'bad.' in said and 'Traceback' not in said, said
    assert f'1 of its tensors hold values that are not finite (NaN, inf): {key} (1 of ' in said
    assert not Path('out').exists()


def test_the_first_few_are_named_and_the_others_counted():
    weights = {f'layer{i}': torch.full((2, 3), float('nan')) for i in range(11)}
    weights |= {'sound': torch.ones(3), 'count': torch.tensor(3)}
    with pytest.raises(UserError, match=r'x.pth: 11 of .* layer0 \(6 of 6 values\), .*, and 3 more') as error:
        refuse_not_finite(weights, 'x.pth')
    assert 'sound' not in str(error.value) and 'count' not in str(error.value)
    model = torch.nn.Linear(2, 2)
    before = model.weight.clone()
    with pytest.raises(UserError, match='not finite'):
        load_into(model, {'weight': torch.full((2, 2), float('nan')), 'bias': torch.ones(2)}, what='x')
    assert torch.equal(model.weight, before)


def test_in_an_onnx_file_too(sound, tmp_path, capfd):
    import onnx
    from onnx import numpy_helper
    made = onnx.load(sound.onnx)
    tensor = next(each for each in made.graph.initializer if each.data_type == onnx.TensorProto.FLOAT
                  and np.prod(each.dims) > 4)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(made, tmp_path / 'bad.onnx')
    for command in (f'predict {tmp_path}/bad.onnx {sound.image} --out {tmp_path}/out',
                    f'bench {tmp_path}/bad.onnx',
                    f'quantize {tmp_path}/bad.onnx {tmp_path}/int8.onnx --images {sound.image}'):
        assert main(command.split()) == 2
        assert f'not finite (NaN, inf): {tensor.name} (1 of' in capfd.readouterr().err


def test_and_in_a_program(sound, tmp_path, capfd):
    assert main(['export', str(sound.config), str(sound.student), str(tmp_path / 'a.pt2')]) == 0
    with zipfile.ZipFile(tmp_path / 'a.pt2') as old, zipfile.ZipFile(tmp_path / 'bad.pt2', 'w') as new:
        large = max((name for name in old.namelist() if '/data/weights/weight_' in name),
                    key=lambda name: old.getinfo(name).file_size)
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, np.float32('nan').tobytes() + data[4:] if name == large else data)
    capfd.readouterr()
    assert main(f'predict {tmp_path}/bad.pt2 {sound.image} --out {tmp_path}/out'.split()) == 2
    assert 'not finite' in capfd.readouterr().err
    shutil.rmtree(tmp_path)


# what is put out ----------------------------------------------------------------------------------------
class Fixed(Model):
    """A detector that puts out the same for every image."""

    def __init__(self, box=0.5, score=0.9, opaque=False):
        super().__init__(Path('x.onnx'), 'a', (10, 10), Settings(0.02, 0.45, 20, 0, (2,)))
        boxes = [[[0.1, 0.1, 0.4, 0.4], [0.2, 0.2, 0.9, box]]]
        self.outputs = np.float32(boxes), np.float32([[[0.8], [score]]])
        self.opaque = opaque

    def detect(self, batch):
        boxes, scores = finite(self.outputs, self.path)
        return [detections(boxes[0], scores[0], self.settings)]

    def raw(self, batch):
        return None if self.opaque else self.outputs


@pytest.mark.parametrize('opaque', [False, True])
@pytest.mark.parametrize('sick', [dict(box=np.nan), dict(score=np.nan), dict(score=np.inf),
                                  dict(box=-np.inf)], ids=str)
@pytest.mark.parametrize('who', ['the form', 'the checkpoint', 'both'])
def test_verification_fails_where_nan_is_put_out(who, sick, opaque):
    reference = Fixed(**sick) if who != 'the form' else Fixed()
    form = Fixed(**sick, opaque=opaque) if who != 'the checkpoint' else Fixed(opaque=opaque)
    image = np.zeros((20, 20, 3), np.uint8)
    row, = compare(reference, [form], [image, image])
    assert not row.holds and (row.images, row.broken) == (2, 2)
    assert compare(Fixed(), [Fixed(opaque=opaque)], [image])[0].holds


def test_a_detector_that_puts_out_nan_is_an_error_and_no_empty_image():
    with pytest.raises(RunError, match='x.onnx puts out values that are not finite'):
        Fixed(score=np.nan)([np.zeros((20, 20, 3), np.uint8)])
