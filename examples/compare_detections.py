"""What several detectors see in the same images, side by side in one picture.

    python examples/compare_detections.py OUT.png IMAGE... --model NAME CONFIG CHECKPOINT [--model ...]

A box is solid where it finds an object of its class (IoU 0.5), dashed where it does not; thin white
boxes are ground truth, when the image lies in a VOC folder with its annotation.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import hgd_det  # noqa: E402,F401  before mmdet

COLOURS = ['#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00']  # colour-blind safe


def detector(config, checkpoint):
    """A plain detector with its weights, ready to predict; of a distillation, the student."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    import hgd_det.registered  # noqa: F401
    from hgd_det.checkpoint import load
    from hgd_det.training.runner import load_config, plain
    from hgd_det.weights import load_into, student_state_dict

    cfg = plain(load_config(config))
    init_default_scope('mmdet')
    model = MODELS.build(cfg.model)
    load_into(model, student_state_dict(load(checkpoint)), what=checkpoint)
    return cfg, model.eval()


def predict(cfg, model, path):
    import torch
    from mmcv.transforms import Compose

    steps = [s for s in cfg.test_dataloader.dataset.pipeline if s['type'] != 'LoadAnnotations']
    data = Compose(steps)(dict(img_path=path, img_id=0))
    with torch.no_grad():
        found = model.test_step(dict(inputs=[data['inputs']], data_samples=[data['data_samples']]))[0]
    found = found.pred_instances
    kept = found[found.scores > 0.3]
    return kept.bboxes.numpy(), kept.labels.numpy()


def truth(path, classes):
    import xml.etree.ElementTree as ElementTree

    xml = Path(path).parent.parent / 'Annotations' / f'{Path(path).stem}.xml'
    if not xml.is_file():
        return [], []
    objects = ElementTree.parse(xml).getroot().iter('object')
    read = [([float(o.find(f'bndbox/{side}').text) - 1 for side in ('xmin', 'ymin', 'xmax', 'ymax')],
             classes.index(o.find('name').text)) for o in objects]
    return [box for box, _ in read], [label for _, label in read]


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0


def draw(axis, boxes, labels, look):
    from matplotlib.patches import Rectangle
    for box, label in zip(boxes, labels, strict=True):
        axis.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False,
                                 **look(box, label)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('out')
    parser.add_argument('images', nargs='+')
    parser.add_argument('--model', nargs=3, action='append', required=True,
                        metavar=('NAME', 'CONFIG', 'CHECKPOINT'))
    args = parser.parse_args()
    import matplotlib
    matplotlib.use('Agg')
    import cv2
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(args.model), len(args.images), squeeze=False, layout='constrained',
                                figsize=(1.7 * len(args.images), 1.8 * len(args.model)))
    for row, (name, config, checkpoint) in zip(axes, args.model, strict=True):
        cfg, model = detector(config, checkpoint)
        classes = list(cfg.test_dataloader.dataset.metainfo.classes)
        row[0].set_ylabel(name, fontsize=11)
        for axis, path in zip(row, args.images, strict=True):
            axis.imshow(cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB))
            axis.set(xticks=[], yticks=[])
            real = list(zip(*truth(path, classes), strict=True))
            draw(axis, [b for b, _ in real], [c for _, c in real],
                 lambda *_: dict(edgecolor='white', linewidth=0.6))
            draw(axis, *predict(cfg, model, path), lambda box, label, real=real: dict(
                edgecolor=COLOURS[label % len(COLOURS)], linewidth=1.5,
                linestyle='-' if any(c == label and iou(box, b) >= 0.5 for b, c in real) else ':'))
    figure.savefig(args.out, dpi=130)


if __name__ == '__main__':
    main()
