"""Whatever form a picture has, the detector sees what a person sees; what is drawn can be read."""
import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from hgd_det.deploy import pictures
from hgd_det.deploy.pictures import Unreadable, Video, VideoFile, colour, draw, read, write
from hgd_det.deploy.postprocess import Detections
from hgd_det.deploy.sources import VIDEOS
from hgd_det.errors import UserError
from hgd_det.testing import png

BCCD = Path(__file__).resolve().parents[3] / 'shared/data/bccd/VOC2007/JPEGImages'
LOSSLESS = {'PNG': {}, 'TIFF': {}, 'WEBP': dict(lossless=True), 'BMP': {}, 'GIF': {}}
# what turns the stored image upright, by EXIF orientation
UPRIGHT = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
           5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
           7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90}


@pytest.fixture
def scene() -> np.ndarray:
    """Smooth colours, no symmetry."""
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 256, (3, 5, 3), np.uint8), (50, 30), interpolation=cv2.INTER_CUBIC)


def saved(path: Path, image: np.ndarray | Image.Image, kind: str, **options) -> Path:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, kind, **LOSSLESS.get(kind, {}), **options)
    return path


def found(*rows) -> Detections:
    """From (x1, y1, x2, y2, score, label)."""
    rows = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))


# ----------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('orientation', UPRIGHT)
def test_a_picture_comes_upright_as_exif_says(scene, tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = dict(quality=100, subsampling=0) if kind == 'JPEG' else {}
    image = read(saved(tmp_path / 'picture', scene, kind, exif=exif.tobytes(), **options))
    wanted = UPRIGHT[orientation](scene)
    assert image.shape == wanted.shape
    assert np.abs(image.astype(int) - wanted).max() <= (5 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'BMP', 'GIF', 'JPEG'])
def test_grey_becomes_three_equal_channels(scene, tmp_path, kind):
    grey = Image.fromarray(scene).convert('L')
    image = read(saved(tmp_path / 'picture', grey, kind))
    assert image.shape == scene.shape and image.dtype == np.uint8
    assert (image == image[..., :1]).all()
    assert np.abs(image[..., 0].astype(int) - np.asarray(grey)).max() <= (5 if kind == 'JPEG' else 0)


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('alpha', [0, 90, 255])
def test_alpha_is_dropped_and_the_colour_below_shows(scene, tmp_path, kind, alpha):
    layered = Image.fromarray(scene)
    layered.putalpha(alpha)
    options = dict(exact=True) if kind == 'WEBP' else {}
    assert (read(saved(tmp_path / 'picture', layered, kind, **options)) == scene).all()


@pytest.mark.parametrize('mode', ['P', '1', 'LA'])
def test_palettes_and_bits_become_the_colours_they_stand_for(scene, tmp_path, mode):
    stored = Image.fromarray(scene).convert(mode)
    image = read(saved(tmp_path / 'picture', stored, 'PNG'))
    assert (image == np.asarray(stored.convert('RGB'))).all()


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
@pytest.mark.parametrize('channels', [1, 3])
def test_of_16_bits_the_upper_8_stay(scene, tmp_path, suffix, channels):
    deep = scene[..., :channels].astype(np.uint16) * 256 + 77
    path = tmp_path / f'deep{suffix}'
    cv2.imwrite(str(path), deep[..., ::-1])
    image = read(path)
    assert image.shape == scene.shape and np.abs(image.astype(int) - scene[..., :channels]).max() <= 1


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk_becomes_rgb(scene, tmp_path, kind):
    ink = Image.fromarray(scene).convert('CMYK')
    options = dict(quality=100, subsampling=0) if kind == 'JPEG' else {}
    image = read(saved(tmp_path / 'picture', ink, kind, **options))
    assert np.abs(image.astype(int) - scene).max() <= 6


@pytest.mark.parametrize('kind', ['GIF', 'MPO'])
def test_the_first_frame_stands_for_several(tmp_path, kind):
    first, second = (Image.new('RGB', (8, 8), name) for name in ('red', 'blue'))
    image = read(saved(tmp_path / 'picture', first, kind, save_all=True, append_images=[second]))
    assert np.abs(image[4, 4].astype(int) - (255, 0, 0)).max() <= 1


def test_a_jpeg_has_the_pixels_that_training_sees(scene, tmp_path):
    path = saved(tmp_path / 'picture.jpg', scene, 'JPEG', quality=80)
    assert (read(path) == cv2.imread(str(path))[..., ::-1]).all()


@pytest.mark.skipif(not BCCD.is_dir(), reason='BCCD is not here')
def test_photographs_have_the_pixels_that_training_sees():
    for path in sorted(BCCD.glob('*.jpg'))[:20]:
        assert (read(path) == cv2.imread(str(path))[..., ::-1]).all(), path.name


@pytest.mark.parametrize('shape', [(1, 1), (1, 3000), (3000, 1)])
def test_any_shape_is_read(tmp_path, shape):
    image = np.full((*shape, 3), 7, np.uint8)
    assert (read(saved(tmp_path / 'thin.png', image, 'PNG')) == image).all()


def encoded(scene, kind) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.tile(scene, (8, 8, 1))).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('part', [0.5, 0.9])
def test_a_file_that_ends_early_is_refused(scene, tmp_path, kind, part):
    data = encoded(scene, kind)
    (tmp_path / 'cut').write_bytes(data[:int(part * len(data))])
    with pytest.raises(Unreadable, match='damaged or cut off|not an image'):
        read(tmp_path / 'cut')


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('data, reason', [
    (b'', 'empty'), (b'hello', 'not an image'), (bytes(5000), 'not an image'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n', 'not an image'),
    (png(11_000, 10_000), 'too many pixels'), (png(60_000, 60_000), 'too many pixels'),
], ids=['nothing', 'text', 'zeros', 'a program', 'large', 'a bomb'])
def test_what_is_no_image_is_refused_with_a_reason(tmp_path, data, reason):
    (tmp_path / 'file').write_bytes(data)
    with pytest.raises(Unreadable, match=reason):
        read(tmp_path / 'file')


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    for name, reason in (('pipe.jpg', 'not a file'), ('.', 'not a file'), ('none.jpg', 'does not exist')):
        with pytest.raises(Unreadable, match=reason):
            read(tmp_path / name)


def test_values_whose_range_is_unknown_are_refused(tmp_path):
    path = saved(tmp_path / 'depth.tif', Image.fromarray(np.ones((4, 4), np.float32)), 'TIFF')
    with pytest.raises(Unreadable, match='32 bits'):
        read(path)


# ----------------------------------------------------------------------------------------- drawing
def test_a_box_has_its_classes_colour_and_the_original_stays_as_it_is():
    image = np.full((500, 600, 3), 90, np.uint8)
    picture = draw(image, found((100, 100, 300, 400, .9, 2)), 'abc')
    assert picture.shape == image.shape and (image == 90).all()
    assert picture[250, 102].tolist() == picture[250, 298].tolist() == list(colour(2))
    assert (picture[200:300, 150:250] == 90).all() and (picture[:, 400:] == 90).all()


def test_a_box_along_the_border_is_wholly_visible():
    picture = draw(np.zeros((500, 500, 3), np.uint8), found((-5, -5, 505, 505, .9, 0)), 'a')
    for side in (picture[490:, 250], picture[250, :10], picture[250, 490:]):
        assert (side == colour(0)).all(1).any()


def test_small_pictures_are_enlarged_and_their_boxes_with_them():
    picture = draw(np.zeros((60, 96, 3), np.uint8), found((20, 30, 60, 50, .9, 0)), 'a')
    assert picture.shape == (300, 480, 3)
    lit = (picture[200] == colour(0)).all(1).nonzero()[0]
    assert 98 <= lit.min() <= 104 and 296 <= lit.max() <= 302


@pytest.mark.parametrize('size', [500, 4000])
def test_lines_and_text_grow_with_the_picture(size):
    picture = draw(np.zeros((size, size, 3), np.uint8), found((size / 5, size / 2, size, size, .9, 0)), 'a')
    lit = (picture == colour(0)).all(2)
    line = lit[int(.8 * size), :size // 2].sum()
    label = lit[:size // 2, int(size / 5) + 1].sum()
    assert line == max(3, round(size / 250)) and 0.02 < label / size < 0.05


def test_every_text_stands_out_from_its_ground():
    def luminance(rgb):
        value = np.array(rgb) / 255
        linear = np.where(value <= .03928, value / 12.92, ((value + .055) / 1.055) ** 2.4)
        return linear @ [.2126, .7152, .0722]
    for label in range(21):
        light, dark = sorted(map(luminance, (colour(label), pictures._contrast(colour(label)))), reverse=True)
        assert (light + .05) / (dark + .05) >= 4.5, label    # W3C's least ratio for text


def test_twenty_classes_have_colours_of_their_own_and_any_number_has_some():
    assert len({colour(label) for label in range(21)}) == 21
    assert colour(1000) == colour(1000 % 21)


def test_texts_of_boxes_at_one_place_do_not_hide_each_other():
    same = [(100, 100, 300, 300, .9 - label / 10, label) for label in range(4)]
    places = pictures._places(found(*same).boxes, ['something 0.90'] * 4, pictures.font_of(14), 3, (500, 500))
    for i, (x1, y1, x2, y2) in enumerate(places):
        assert all(x2 <= a or c <= x1 or y2 <= b or d <= y1 for a, b, c, d in places[:i])


@pytest.mark.parametrize('shape', [(1, 1), (2, 3000), (3000, 2), (13, 480)])
def test_any_shape_is_drawn_on(shape):
    box = (0, 0, shape[1], shape[0], .9, 0)
    picture = draw(np.zeros((*shape, 3), np.uint8), found(box, box), ['a class with a very long name'])
    assert max(picture.shape) >= 480 and picture.any()


def test_a_picture_without_detections_is_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (480, 500, 3), np.uint8)
    assert (draw(image, found(), ()) == image).all()


def test_what_a_format_cannot_hold_is_said(tmp_path):
    with pytest.raises(UserError, match='70000 x 1 pixels'):
        write(np.zeros((1, 70_000, 3), np.uint8), tmp_path / 'long.jpg')


# ----------------------------------------------------------------------------------------- videos
def video(path: Path, rate: float = 12.5, count: int = 12, shape=(48, 64)) -> Path:
    file = VideoFile(path, rate)
    for number in range(count):
        file.add(np.full((*shape, 3), (20 * number, 0, 200), np.uint8))
    file.close()
    return path


@pytest.mark.parametrize('suffix', VIDEOS)
@pytest.mark.parametrize('rate', [12.5, 29.97, 119.88])
def test_a_video_keeps_its_frames_and_its_rate(tmp_path, suffix, rate):
    read_back = Video(video(tmp_path / f'clip{suffix}', rate))
    images = list(read_back)
    assert len(images) == read_back.count == 12 and read_back.rate == pytest.approx(rate, rel=1e-3)
    assert images[0].shape == (48, 64, 3)
    assert np.abs(images[6].reshape(-1, 3).mean(0) - (120, 0, 200)).max() < 12    # RGB, in order


def test_a_video_that_ends_early_gives_what_it_has_and_says_so(tmp_path):
    path = video(tmp_path / 'clip.avi', count=50)
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    images = []
    with pytest.raises(Unreadable, match='ends after|not a video'):
        images.extend(Video(path))


@pytest.mark.parametrize('data', [b'', b'no video', b'#EXTM3U\n#EXTINF:1\nhttp://localhost:9/x.ts\n'],
                         ids=['nothing', 'text', 'a list of addresses'])
def test_what_is_no_video_is_refused(tmp_path, data):
    (tmp_path / 'clip.mp4').write_bytes(data)
    with pytest.raises(Unreadable, match='not a video'):
        Video(tmp_path / 'clip.mp4')


def test_a_video_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, 'MAX_PIXELS', 1000)
    with pytest.raises(Unreadable, match='64 x 48'):
        Video(video(tmp_path / 'clip.mp4'))
