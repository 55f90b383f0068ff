"""A distilled detector without PyTorch: NumPy, OpenCV and onnxruntime are all that is installed.

    hgd-det export auto work_dirs/shapes/hgd/iter_500.pth student.onnx --with-nms
    python examples/deploy_onnx.py student.onnx image.jpg out.jpg
"""
import json
import sys

import cv2
import numpy as np
import onnxruntime

COLOURS = [(0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (0, 94, 213), (167, 121, 204)]  # BGR
FONT = cv2.FONT_HERSHEY_SIMPLEX


def load(path):
    """The session and the names of the classes, which the export wrote into the file."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    if [output.name for output in session.get_outputs()] != ['boxes', 'scores', 'labels']:
        sys.exit(f'{path} has raw outputs, this script wants detections: export it with --with-nms')
    return session, json.loads(session.get_modelmeta().custom_metadata_map['hgd_det'])['classes']


def detect(session, image, threshold=0.3):
    """Boxes (n, 4) as x1 y1 x2 y2 in pixels, scores (n,) and labels (n,) of a BGR image."""
    _, height, width, _ = session.get_inputs()[0].shape
    pixels = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)[..., ::-1]    # RGB
    boxes, scores, labels = (out[0] for out in session.run(None, {'images': pixels[None]}))
    kept = (labels >= 0) & (scores >= threshold)    # -1 pads
    return boxes[kept] * np.float32([image.shape[1], image.shape[0]] * 2), scores[kept], labels[kept]


def draw(image, boxes, scores, labels, classes):
    """A copy with what was found; small images are enlarged, so that the text fits in."""
    factor = max(1, 480 // max(image.shape[:2]))
    image = cv2.resize(image, None, fx=factor, fy=factor)
    size = max(0.4, min(image.shape[:2]) / 900)
    for box, score, label in zip((boxes * factor).round().astype(int).tolist(), scores, labels, strict=True):
        colour, text = COLOURS[label % len(COLOURS)], f'{classes[label]} {score:.2f}'
        (width, height), base = cv2.getTextSize(text, FONT, size, 1)
        x, y = box[0], max(box[1], height + base)
        cv2.rectangle(image, box[:2], box[2:], colour, max(2, round(3 * size)))
        cv2.rectangle(image, (x, y - height - base), (x + width, y), colour, -1)
        cv2.putText(image, text, (x, y - base // 2), FONT, size, (0, 0, 0), 1, cv2.LINE_AA)
    return image


if __name__ == '__main__':
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    session, classes = load(sys.argv[1])
    image = cv2.imread(sys.argv[2])    # turned as EXIF says
    if image is None:
        sys.exit(f'{sys.argv[2]} is not an image')
    found = detect(session, image)
    cv2.imwrite(sys.argv[3], draw(image, *found, classes))
    for box, score, label in zip(*found, strict=True):
        print(f'{classes[label]} {score:.3f}', *(f'{value:.1f}' for value in box))
