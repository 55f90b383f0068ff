"""What `bench` measured, to read: what the models are, then how long they take."""
from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial

from hgd_det.deploy import tables

WIDTH = 110
NAMES = ('model', 'runtime', 'precision')
LONGEST = 32    # of names; a longer one loses its beginning
SCOPE = ('Timed: uint8 images at input size -> detections after NMS (normalisation, network, decoding, NMS); '
         'reading and resizing images is not in it. Models take turns. images/s: batch / median. '
         'speed: as a multiple of the first model.')


def table(report: dict, markdown: bool = False) -> str:
    """Two tables and what they mean, in lines of 110 columns at most unless as Markdown."""
    layout = tables.markdown if markdown else partial(tables.plain, left=NAMES)
    host, versions = report['host'], report['versions']
    used = {'torch': versions['torch']}
    if any(row['runtime'] == 'onnxruntime' for row in report['models']):
        used['onnxruntime'] = versions['onnxruntime']
    head = (f'{host["cpu"]}, {host["cores"]} cores, load {host["load"]:.1f} at the start; '
            + ', '.join(f'{name} {number}' for name, number in used.items()))
    notes = '\n'.join(textwrap.fill(note, WIDTH) for note in _notes(report))
    return '\n\n'.join([head, layout(_models(report)), layout(_times(report)), notes])


def _models(report: dict) -> list[list[str]]:
    """Header and rows."""
    rows = report['models']
    metric = next((key for row in rows for key in row.get('metrics', ())), None)
    columns: dict[str, Callable[[dict], str]] = {
        'model': lambda row: _short(row['model']),
        'runtime': lambda row: row['runtime'] + (' + NMS' if row['nms_inside'] else ''),
        'precision': lambda row: row['precision'] or '-',
        'params': lambda row: _scaled(row['params'], 1e6, 'M'),
        'MACs': lambda row: _scaled(row['macs'], 1e9, 'G'),
        'file MB': lambda row: f'{row["bytes"] / 1e6:.2f}'}
    if any('memory' in row for row in rows):
        columns['peak MB'] = lambda row: f'{row["memory"]["bytes"] / 1e6:.0f}'
    if metric:
        columns[metric.partition('/')[2]] = lambda row: f'{100 * row["metrics"][metric]:.2f}'
    return [list(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def _times(report: dict) -> list[list[str]]:
    lines, first = [['batch', 'threads', 'model', 'median ms', 'p95 ms', 'images/s', 'speed']], {}
    for row in report['times']:
        reference = first.setdefault((row['batch'], row['threads']), row)
        new = reference is row
        lines.append([str(row['batch']) if new else '', str(row['threads']) if new else '',
                      _short(row['model']), f'{row["median_ms"]:.2f}', f'{row["p95_ms"]:.2f}',
                      f'{row["images_per_s"]:.1f}', f'{reference["median_ms"] / row["median_ms"]:.2f}x'])
    return lines


def _notes(report: dict) -> list[str]:
    shown = ('Shown: noise; what NMS costs depends on what is seen, so give real images for it (--images).'
             if report['images'] == 'noise' else f'Shown: {report["images"]}.')
    notes = [SCOPE, f'{shown} {report["repeat"]} calls each after {report["warmup"]} for warming up.']
    host = report['host']
    if host['load'] > host['cores'] / 2:
        notes.append(f'The machine was busy with other work (load {host["load"]:.1f} on {host["cores"]} '
                     'cores): these times are too long, most of all those with several threads.')
    if memory := report['models'][0].get('memory'):
        loader = any(row['runtime'] == 'torch.export' for row in report['models'])
        notes.append('peak MB: what a process of its own took at most for the model, beyond the libraries '
                     f'(batch {memory["batch"]}, threads {memory["threads"]}).'
                     + ' Of torch.export the loader, about 40 MB, is in it.' * loader)
    return notes


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else '…' + name[1 - LONGEST:]


def _scaled(number: int | None, unit: float, sign: str) -> str:
    return '-' if number is None else f'{number / unit:.3g} {sign}'
