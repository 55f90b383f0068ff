"""`hgd-det predict`: every picture that can be read is looked at, and nothing is lost or overwritten."""
import io
import json
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from hgd_det.checkpoint import sha256
from hgd_det.cli.main import main
from hgd_det.deploy import predict as module
from hgd_det.deploy.pictures import Unreadable, Video, VideoFile, draw, read
from hgd_det.deploy.postprocess import Detections
from hgd_det.deploy.predict import Progress, ahead, predict
from hgd_det.deploy.runtime import open_model
from hgd_det.deploy.sources import Source, collect
from hgd_det.errors import UserError

pytestmark = pytest.mark.thorough


def noise(seed: int, height: int = 80, width: int = 120) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (width, height),
                      interpolation=cv2.INTER_NEAREST)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def call(*argv) -> int:
    return main(['predict', *map(str, argv)])


def result(out) -> dict:
    return json.loads((out / 'predictions.json').read_text())


def boxes_of(content: dict, image: int = 1) -> np.ndarray:
    """(n, 6): x1 y1 x2 y2 score label."""
    rows = [(x, y, x + w, y + h, a['score'], a['category_id'] - 1) for a in content['annotations']
            for x, y, w, h in [a['bbox']] if a['image_id'] == image]
    return np.array(rows).reshape(-1, 6)


def same_boxes(rows: np.ndarray, wanted: np.ndarray | Detections) -> None:
    if isinstance(wanted, Detections):
        wanted = np.column_stack(wanted)
    assert rows.shape == wanted.shape and len(rows) > 3
    assert np.abs(rows[:, :4] - wanted[:, :4]).max() < 0.02
    assert np.abs(rows[:, 4] - wanted[:, 4]).max() < 1e-4 and (rows[:, 5] == wanted[:, 5]).all()


class Spy:
    """A model that notes what it is given and finds the whole image."""
    kind, classes = 'spy', ('thing',)

    def __init__(self, path, fails_at: int = 0):
        self.path, self.seen, self.fails_at = path, [], fails_at

    def __call__(self, images):
        self.seen.append([image.shape for image in images])
        if len(self.seen) == self.fails_at:
            raise RuntimeError('no more')
        return [Detections(np.float32([[0, 0, image.shape[1], image.shape[0]]]), np.float32([.9]),
                           np.array([0])) for image in images]


@pytest.fixture
def spy(checkpoint):
    return Spy(checkpoint)


# ----------------------------------------------------------------------------------------- results
def test_a_folder_gives_pictures_and_a_file_of_predictions(checkpoint, tmp_path, capsys):
    photos, out = tmp_path / 'photos', tmp_path / 'deep' / 'out'
    for i, name in enumerate(('b.png', 'a.png', 'sub/c.jpg')):
        save(photos / name, noise(i, 80 + i, 120))
    (photos / 'notes.txt').write_text('no image')
    assert call(checkpoint, photos, '--out', out, '--batch-size', 2) == 0
    content = result(out)
    assert [(i['id'], i['file_name'], i['width'], i['height']) for i in content['images']] == [
        (1, 'a.png', 120, 81), (2, 'b.png', 120, 80), (3, 'sub/c.jpg', 120, 82)]
    assert content['categories'] == [dict(id=1, name='disc'), dict(id=2, name='square'),
                                     dict(id=3, name='star')]
    assert [a['id'] for a in content['annotations']] == list(range(1, len(content['annotations']) + 1))
    info = content['info']
    assert (info['model'], info['kind'], info['score_threshold']) == ('tiny.pth', 'torch', 0.3)
    assert info['sha256'] == sha256(checkpoint) and info['versions']['torch'] and info['skipped'] == []
    assert str(tmp_path) not in json.dumps(content)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file()) == [
        'a.png', 'b.png', 'predictions.json', 'sub/c.jpg']
    model = open_model(checkpoint)
    for number, name in enumerate(('a.png', 'b.png', 'sub/c.jpg'), 1):
        same_boxes(boxes_of(content, number), model([read(photos / name)])[0].above(.3))
    found = model([read(photos / 'a.png')])[0].above(.3)
    assert (read(out / 'a.png') == draw(read(photos / 'a.png'), found, model.classes)).mean() > 0.99
    assert '3 images' in capsys.readouterr().out


def test_pycocotools_reads_the_predictions(checkpoint, tmp_path):
    from pycocotools.coco import COCO
    save(tmp_path / 'a.png', noise(0))
    assert call(checkpoint, tmp_path / 'a.png', '--out', tmp_path / 'out') == 0
    coco = COCO(str(tmp_path / 'out' / 'predictions.json'))
    found = coco.loadAnns(coco.getAnnIds(imgIds=[1], catIds=coco.getCatIds(['disc'])))
    assert found and all(f['category_id'] == 1 and f['iscrowd'] == 0 for f in found)
    for each in coco.anns.values():
        assert each['area'] == pytest.approx(each['bbox'][2] * each['bbox'][3], rel=1e-2, abs=1e-2)


@pytest.mark.slow
def test_every_form_of_a_model_predicts_the_same(checkpoint, onnx_raw, onnx_nms, tmp_path):
    save(tmp_path / 'a.png', noise(3))
    for model in (checkpoint, onnx_raw, onnx_nms):
        assert call(model, tmp_path / 'a.png', '--out', tmp_path / model.stem, '--threads', 1) == 0
    first, *others = (boxes_of(result(tmp_path / m.stem)) for m in (checkpoint, onnx_raw, onnx_nms))
    for other in others:
        same_boxes(other, first)
    assert result(tmp_path / 'nms')['info']['kind'] == 'onnxruntime'


def test_neither_batches_nor_company_change_the_predictions(checkpoint, tmp_path):
    for i in range(5):
        save(tmp_path / f'in/{i}.png', noise(i, 60 + 20 * i))
    for size in (1, 3):
        assert call(checkpoint, tmp_path / 'in', '--out', tmp_path / f'{size}', '--batch-size', size) == 0
    for image in range(1, 6):
        same_boxes(*(boxes_of(result(tmp_path / f'{size}'), image) for size in (1, 3)))


def test_boxes_of_a_turned_picture_refer_to_the_upright_image(checkpoint, tmp_path):
    upright = noise(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / 'turned.png', np.rot90(upright).copy(), exif=exif.tobytes())
    assert call(checkpoint, tmp_path / 'turned.png', '--out', tmp_path / 'out') == 0
    content = result(tmp_path / 'out')
    assert (content['images'][0]['width'], content['images'][0]['height']) == (120, 80)
    same_boxes(boxes_of(content), open_model(checkpoint)([upright])[0].above(.3))


@pytest.mark.parametrize('shape', [(1, 1), (2, 900), (900, 2)])
def test_any_shape_is_predicted_within_its_borders(checkpoint, tmp_path, shape):
    save(tmp_path / 'thin.png', np.full((*shape, 3), 200, np.uint8))
    assert call(checkpoint, tmp_path / 'thin.png', '--out', tmp_path / 'out', '--score', 0.05) == 0
    rows = boxes_of(result(tmp_path / 'out'))
    assert len(rows) and rows[:, :4].min() >= 0
    assert rows[:, [0, 2]].max() <= shape[1] + 2e-3 and rows[:, [1, 3]].max() <= shape[0] + 2e-3


def test_the_score_decides_what_stays(checkpoint, tmp_path):
    save(tmp_path / 'a.png', noise(0))
    wanted = open_model(checkpoint)([noise(0)])[0]
    for score in (0.0, 0.5, 1.0):
        assert call(checkpoint, tmp_path / 'a.png', '--out', tmp_path / f'out{score}', '--score', score) == 0
        assert len(result(tmp_path / f'out{score}')['annotations']) == (wanted.scores >= score).sum()


# ------------------------------------------------------------------------------------ broken files
def test_broken_files_are_skipped_listed_and_change_the_exit_status(checkpoint, tmp_path, capsys):
    photos = tmp_path / 'photos'
    save(photos / 'a.jpg', noise(0))
    save(photos / 'z.jpg', noise(1))
    data = io.BytesIO()
    Image.fromarray(noise(2)).save(data, 'JPEG')
    (photos / 'cut.jpg').write_bytes(data.getvalue()[:-200])
    (photos / 'empty.png').touch()
    (photos / 'text.png').write_text('hello')
    (photos / 'clip.mp4').write_text('hello')
    assert call(checkpoint, photos, photos / 'clip.mp4', '--out', tmp_path / 'out', '--batch-size', 1) == 1
    content, said = result(tmp_path / 'out'), capsys.readouterr().err
    assert [i['file_name'] for i in content['images']] == ['a.jpg', 'z.jpg']
    assert [each['file_name'] for each in content['info']['skipped']] == [
        'cut.jpg', 'empty.png', 'text.png', 'clip.mp4']
    assert '4 of 6 files' in said
    for name, reason in (('cut.jpg', 'cut off'), ('empty.png', 'empty'), ('text.png', 'not an image'),
                         ('clip.mp4', 'not a video')):
        assert any(name in line and reason in line for line in said.splitlines()), name
    assert not (tmp_path / 'out' / 'cut.jpg').exists()


def test_only_broken_files_give_an_empty_result(checkpoint, tmp_path):
    (tmp_path / 'empty.png').touch()
    assert call(checkpoint, tmp_path / 'empty.png', '--out', tmp_path / 'out') == 1
    assert result(tmp_path / 'out')['images'] == []


def test_a_picture_too_narrow_for_the_model_does_not_take_its_batch_along(checkpoint, tmp_path):
    class KeepsShape(Spy):
        def __call__(self, images):
            for image in images:
                cv2.resize(image, None, fx=96 / image.shape[1], fy=96 / image.shape[1])
            return super().__call__(images)

    for name, shape in dict(a=(80, 120), b=(1, 1000), c=(90, 120)).items():
        save(tmp_path / f'in/{name}.png', noise(0, *shape))
    report = predict(KeepsShape(checkpoint), collect([tmp_path / 'in'], 'out'), tmp_path / 'out')
    assert [image['file_name'] for image in report.images] == ['a.png', 'c.png']
    assert [(source.name, why) for source, why in report.skipped] == [
        ('b.png', '1000 x 1 pixels are too narrow for the model')]


def test_a_run_that_breaks_off_leaves_the_earlier_result_whole(checkpoint, tmp_path):
    for i in range(3):
        save(tmp_path / f'in/{i}.png', noise(i))
    sources = collect([tmp_path / 'in'], tmp_path / 'out')
    predict(Spy(checkpoint), sources, tmp_path / 'out')
    before = result(tmp_path / 'out')
    with pytest.raises(RuntimeError, match='no more'):
        predict(Spy(checkpoint, fails_at=2), sources, tmp_path / 'out', batch_size=1, force=True)
    assert result(tmp_path / 'out') == before
    assert not list((tmp_path / 'out').glob('.*'))


# ---------------------------------------------------------------------------------------- pictures
def test_pictures_of_equal_names_do_not_overwrite_one_another(spy, tmp_path):
    files = [save(tmp_path / f'{folder}/x.png', noise(i, 50 + i)) for i, folder in enumerate('abc')]
    predict(spy, collect(files, tmp_path / 'out'), tmp_path / 'out')
    shapes = {read(tmp_path / 'out' / i['file_name']).shape[0] // 4: i['height']
              for i in result(tmp_path / 'out')['images']}
    assert shapes == {50: 50, 51: 51, 52: 52}


def test_a_picture_of_another_suffix_is_written_as_png(spy, tmp_path):
    save(tmp_path / 'photo', noise(0), format='JPEG')
    save(tmp_path / 'moving.gif', noise(1))
    predict(spy, collect([tmp_path / 'photo', tmp_path / 'moving.gif'], 'out'), tmp_path / 'out')
    assert Image.open(tmp_path / 'out' / 'photo.png').format == 'PNG'
    assert Image.open(tmp_path / 'out' / 'moving.gif.png').format == 'PNG'


@pytest.mark.parametrize('out', ['in', '.'])
def test_originals_are_not_overwritten(checkpoint, tmp_path, capsys, out, monkeypatch):
    path = save(tmp_path / 'in/x.png', noise(0))
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert call(checkpoint, '.' if out == '.' else 'in', '--out', out) == 2
    assert 'overwrite' in capsys.readouterr().err and path.read_bytes() == before
    assert call(checkpoint, 'in', '--out', out, '--no-pictures') == 0 and path.read_bytes() == before


def test_without_pictures_only_the_predictions_are_written(spy, tmp_path):
    save(tmp_path / 'x.png', noise(0))
    predict(spy, collect([tmp_path / 'x.png'], 'out'), tmp_path / 'out', draw=False)
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['predictions.json']


# ------------------------------------------------------------------------------------------ videos
def test_a_video_becomes_a_video_of_the_same_rate_with_numbered_frames(checkpoint, tmp_path):
    clip = VideoFile(tmp_path / 'clip.mp4', 12.5)
    for seed in range(7):
        clip.add(noise(seed, 480, 640))
    clip.close()
    save(tmp_path / 'x.png', noise(0))
    assert call(checkpoint, tmp_path / 'clip.mp4', tmp_path / 'x.png', '--out', tmp_path / 'out') == 0
    content = result(tmp_path / 'out')
    assert [(i['file_name'], i.get('frame')) for i in content['images']] == [
        *(('clip.mp4', number) for number in range(7)), ('x.png', None)]
    images, drawn = list(Video(tmp_path / 'clip.mp4')), Video(tmp_path / 'out' / 'clip.mp4')
    same_boxes(boxes_of(content, 5), open_model(checkpoint)([images[4]])[0].above(.3))
    assert drawn.rate == pytest.approx(12.5) and len(list(drawn)) == 7


# ------------------------------------------------------------------------------------------ memory
def test_a_batch_holds_no_more_images_than_asked_and_fewer_large_ones(spy, tmp_path, monkeypatch):
    for i in range(7):
        save(tmp_path / f'in/{i}.png', noise(i, 100, 100 if i < 4 else 300))
    sources = collect([tmp_path / 'in'], tmp_path / 'out')
    predict(spy, sources, tmp_path / 'out', batch_size=3, draw=False)
    assert [len(batch) for batch in spy.seen] == [3, 3, 1]
    spy.seen.clear()
    monkeypatch.setattr(module, 'BATCH_PIXELS', 25_000)
    predict(spy, sources, tmp_path / 'out', batch_size=3, draw=False, force=True)
    assert [len(batch) for batch in spy.seen] == [3, 2, 1, 1]


def test_the_next_batch_is_read_while_the_model_runs_and_no_further(tmp_path):
    made, reached = [], threading.Event()

    def numbers():
        for number in range(5):
            made.append(number)
            if number == 1:
                reached.set()
            yield number

    stream = ahead(numbers())
    assert next(stream) == 0 and reached.wait(5)
    time.sleep(0.05)
    assert made == [0, 1] and list(stream) == [1, 2, 3, 4]


def test_an_error_while_reading_ahead_is_raised():
    def broken():
        yield 1
        raise ValueError('here')

    with pytest.raises(ValueError, match='here'):
        list(ahead(broken()))


# ---------------------------------------------------------------------------------------- progress
class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_how_far_and_how_long_still_and_nothing_remains(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: clock[0])
    progress = Progress(40, stream := Terminal())
    clock[0] += 5
    progress.show(10)
    assert '] 10/40 2.0 images/s, 00:00:15 left' in stream.getvalue()
    progress.close()
    assert stream.getvalue().endswith('\r\x1b[K')


def test_elsewhere_a_line_comes_every_half_minute(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, 'monotonic', lambda: clock[0])
    progress = Progress(400, stream := io.StringIO())
    for done in range(0, 400, 10):
        progress.show(done)
        clock[0] += 1
    progress.close()
    assert stream.getvalue() == 'predict 300/400 10.0 images/s, 00:00:10 left\n'


def test_options_change_the_config_inside_a_checkpoint(checkpoint, tmp_path):
    save(tmp_path / 'x.png', noise(0))
    assert call(checkpoint, tmp_path / 'x.png', '--out', tmp_path / 'out',
                '--cfg-options', 'model.test_cfg.max_per_img=2') == 0
    assert len(result(tmp_path / 'out')['annotations']) == 2


def test_a_place_that_cannot_be_written_to_is_named(spy, tmp_path):
    save(tmp_path / 'x.png', noise(0))
    (tmp_path / 'out' / 'x.png').mkdir(parents=True)
    with pytest.raises(UserError, match='x.png is a folder'):
        predict(spy, collect([tmp_path / 'x.png'], tmp_path / 'out'), tmp_path / 'out')


def test_a_video_that_breaks_off_is_noted_behind_its_frames(monkeypatch, tmp_path):
    class Broken:
        def __init__(self, path):
            pass

        def __iter__(self):
            yield noise(0)
            raise Unreadable('ends after 1 of 9 frames')

    monkeypatch.setattr(module, 'Video', Broken)
    skipped = []
    found = list(module.frames([source := Source(tmp_path / 'clip.mp4', 'clip.mp4')], skipped))
    assert [frame.number for frame in found] == [0]
    assert skipped == [(source, 'ends after 1 of 9 frames')]
