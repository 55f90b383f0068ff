"""The model card: what an exported student is, in words and as plain values."""
from __future__ import annotations

from hgd_det import __version__
from hgd_det.checkpoint import sha256
from hgd_det.compat import versions
from hgd_det.deploy.student import Student
from hgd_det.models.complexity import count

INPUTS = {
    'onnx': '`images` uint8 (batch, {height}, {width}, 3), RGB; normalisation is inside',
    'torch': 'one uint8 tensor (batch, {height}, {width}, 3), RGB; normalisation is inside',
    'pth': "with its config beside it: `hgd-det predict`, or mmdet's `init_detector`",
    'safetensors': 'as the .pth',
}
RAW = '`boxes` (batch, anchors, 4) and `scores` (batch, anchors, classes), before NMS'
OUTPUTS = {
    ('onnx', True): '`boxes` (batch, n, 4), `scores` (batch, n), `labels` (batch, n), after NMS; padded '
                    'with label -1',
    ('onnx', False): RAW,
    ('torch', False): RAW,
}


def facts(student: Student, half: bool = False) -> dict:
    """Plain values, fit for JSON."""
    size = student.input_size or _nominal(student)
    cost = count(student.detector, size) if size else None
    return dict(
        classes=list(student.classes), input_size=size and list(size), precision='float16' if half
        else 'float32', params=sum(p.numel() for p in student.detector.parameters()),
        macs=cost and cost.macs, detector=type(student.detector).__name__,
        iterations=student.meta.get('iter'), taught=dict(student.taught),
        source=dict(file=student.path.name, sha256=sha256(student.path)),
        hgd_det=__version__)


def _nominal(student: Student) -> tuple[int, int] | None:
    size = student.config.get('input_size')
    return (size, size) if isinstance(size, int) else size and tuple(size)


def text(facts: dict) -> str:
    """Markdown."""
    height, width = facts['input_size'] or ('any', 'any')
    lines = ['# Model card', '', '| | |', '|---|---|',
             f'| classes | {", ".join(facts["classes"])} |',
             f'| input | {height} x {width} pixels, RGB |',
             f'| parameters | {facts["params"]:,} |']
    if facts['macs']:
        lines.append(f'| multiply-adds | {facts["macs"] / 1e9:.3g} G |')
    lines.append(f'| precision | {facts["precision"]} |')
    taught = facts['taught']
    if taught:
        terms = ', '.join(f'{name} ({kind})' for name, kind in taught.get('terms', {}).items())
        lines += [f'| teacher | {taught.get("teacher") or "see the config"} |',
                  f'| terms | {terms or "none"} |']
    else:
        lines.append('| teacher | none: trained alone |')
    if facts.get('iterations'):
        lines.append(f'| training iterations | {facts["iterations"]:,} |')
    for key, value in (facts.get('metrics') or {}).items():
        lines.append(f'| {key} | {100 * value:.2f} |')
    lines += [f'| made from | `{facts["source"]["file"]}`, sha256 `{facts["source"]["sha256"]}` |',
              f'| by | {", ".join(f"{k} {v}" for k, v in versions().items() if v)} |', '',
              '## Files', '', '| file | MB | input | output | sha256 |', '|---|---|---|---|---|']
    for name, file in facts.get('files', {}).items():
        kind = file['format']
        given = INPUTS[kind].format(height=height, width=width)
        lines.append(f'| `{name}` | {file["bytes"] / 1e6:.2f} | {given} | '
                     f'{OUTPUTS.get((kind, file.get("nms", False)), "")} | `{file["sha256"][:16]}…` |')
    lines += ['', 'Boxes are x1 y1 x2 y2 as fractions of the image. Images are stretched to the input size '
              '(bilinear), whatever their shape.']
    if facts.get('verified'):
        lines += ['', '## Verified against the checkpoint', '', facts['verified']]
    return '\n'.join(lines) + '\n'
