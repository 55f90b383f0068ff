"""Sound inputs of the data readers: a set in VOC and in COCO form, images, archives."""
import io
import json
import tarfile
import zipfile

import cv2
import numpy as np
from PIL import Image

CLASSES = ('disc', 'square', 'star')
SIZE = (28, 24)  # width, height


def picture(form='.jpg', channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, channels), np.uint8)
    return cv2.imencode(form, cv2.resize(pixels, SIZE, interpolation=cv2.INTER_NEAREST))[1].tobytes()


def pictures():
    """One of every kind that OpenCV or Pillow reads."""
    found = [
        picture(form) for form in ('.jpg', '.png', '.bmp', '.webp', '.tiff', '.ppm', '.pam', '.ras', '.hdr')
    ]
    found += [
        picture(channels=1),
        picture('.png', 4),
        cv2.imencode('.png', np.full(SIZE, 9999, np.uint16))[1].tobytes()
    ]
    image, exif = Image.open(io.BytesIO(found[0])), Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'x'
    for form, options in (('JPEG', dict(exif=exif)), ('JPEG', dict(progressive=True)), ('GIF', {}),
                          ('PNG', dict(exif=exif)), ('TIFF', dict(compression='tiff_lzw')),
                          ('TIFF', dict(exif=exif))):
        image.save(out := io.BytesIO(), form, **options)
        found.append(out.getvalue())
    for mode, form in (('CMYK', 'JPEG'), ('P', 'PNG'), ('1', 'PNG'), ('LA', 'PNG'), ('I;16', 'TIFF'),
                       ('F', 'TIFF')):
        Image.new(mode, SIZE).save(out := io.BytesIO(), form)
        found.append(out.getvalue())
    return found


def annotation(name, boxes):
    objects = ''.join(
        f'<object><name>{label}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>{hard}</difficult>'
        f'<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n'
        for label, hard, (x1, y1, x2, y2) in boxes)
    return (
        f'<annotation>\n<folder>VOC2007</folder><filename>{name}.jpg</filename>\n<size><width>{SIZE[0]}</width>'
        f'<height>{SIZE[1]}</height><depth>3</depth></size>\n{objects}</annotation>\n').encode()


BOXES = {
    'a': [('disc', 0, (2, 3, 12, 15)), ('square', 1, (5.5, 6, 27, 20))],
    'b': [('star', 0, (1, 1, 28, 24))],
    'c': [('disc', 0, (10, 10, 15, 16)), ('star', 0, (3, 3, 9, 9))],
    'd': [('square', 0, (4, 4, 20, 20))]
}


def coco(names):
    annotations = [(image, label, [x1 - 1, y1 - 1, x2 - x1, y2 - y1], hard)
                   for image, name in enumerate(names, 1) for label, hard, (x1, y1, x2, y2) in BOXES[name]]
    return dict(
        images=[dict(id=i, file_name=f'{name}.jpg', width=SIZE[0], height=SIZE[1])
                for i, name in enumerate(names, 1)],
        annotations=[dict(id=i, image_id=image, category_id=CLASSES.index(label) + 1, bbox=box, iscrowd=hard,
                          area=box[2] * box[3])
                     for i, (image, label, box, hard) in enumerate(annotations, 1)],
        categories=[dict(id=i, name=name, supercategory='shape') for i, name in enumerate(CLASSES, 1)])


def tree():
    """A set in VOC and in COCO form: {path: content}."""
    files = {f'VOC2007/JPEGImages/{name}.jpg': picture(seed=i) for i, name in enumerate(BOXES)}
    files |= {f'VOC2007/Annotations/{name}.xml': annotation(name, boxes) for name, boxes in BOXES.items()}
    files |= {'VOC2007/ImageSets/Main/trainval.txt': b'a\nb\nc\n', 'VOC2007/ImageSets/Main/test.txt': b'd\n'}
    return files | {'annotations/instances_train.json': json.dumps(coco('abc')).encode()}


def archives():
    files = {f'VOCdevkit/{path}': content for path, content in tree().items() if path.startswith('VOC')}
    found = []
    for mode in ('w', 'w:gz', 'w:bz2', 'w:xz'):
        for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[:3 if mode == 'w' else 1]:
            with tarfile.open(fileobj=(out := io.BytesIO()), mode=mode, format=form) as packed:
                for path, content in files.items():
                    member = tarfile.TarInfo(path if form == tarfile.USTAR_FORMAT else f'{"x" * 120}/{path}')
                    member.size = len(content)
                    packed.addfile(member, io.BytesIO(content))
            found.append(out.getvalue())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(out := io.BytesIO(), 'w', method) as packed:
            for path, content in files.items():
                packed.writestr(path, content)
        found.append(out.getvalue())
    return found


def seeds():
    """{kind: sound inputs, and what the fuzz once found}."""
    files = tree()
    area, thin = coco('abc'), coco('abc')
    area['annotations'][1]['area'] = -1
    thin['annotations'][1]['bbox'][2] = 0.5
    return dict(xml=[files['VOC2007/Annotations/a.xml']], list=[files['VOC2007/ImageSets/Main/trainval.txt']],
                json=[json.dumps(one).encode() for one in (coco('abc'), area, thin)],
                image=pictures(), archive=archives())
