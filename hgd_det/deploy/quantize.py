"""INT8: the convolutions of an exported ONNX file in 8 bits, calibrated on images; how its settings
were chosen is in docs/bench.md."""
from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from hgd_det.checkpoint import atomic_write
from hgd_det.deploy.onnx_file import KEY
from hgd_det.deploy.runtime import OnnxModel, open_model
from hgd_det.errors import UserError
from hgd_det.outputs import keep_originals

ACTIVATIONS = ('Relu', 'Clip')       # Clip: ReLU6


def quantize(onnx_path: str | Path, out_path: str | Path, images: Iterable[np.ndarray],
             limit: int = 200, force: bool = False) -> dict:
    """Write the file's INT8 form and return what its metadata say.

    ::

        q = clamp(round(x / scale) + zero)      scale, zero: of each map from the smallest and largest
                                                value on the images; of each output channel's weights

    In 8 bits are the convolutions but the first, which with three channels is faster in float, and the
    activations and poolings between them; normalisation, softmax, decoding and NMS stay float. Maps
    have 8 bits, weights 7: processors without VNNI add products in 16 bits, which more would overflow.

    Args:
        onnx_path: A file of the export, with NMS or without.
        out_path: Where to write.
        images: RGB, of any sizes; such as the model was trained on.
        limit: Take no more than this many.
        force: Write over another file.
    """
    keep_originals([out_path], [onnx_path], force=force)
    model, meta = _open(onnx_path)
    try:
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise UserError(f'INT8 needs the package {error.name}: pip install onnx onnxruntime') from None
    reader = _Reader(model.resize(image)[None] for image in islice(images, limit))
    with tempfile.TemporaryDirectory() as folder, _quiet():
        place = Path(folder, 'int8.onnx')
        quantize_static(str(onnx_path), str(place), reader, quant_format=QuantFormat.QDQ,
                        op_types_to_quantize=['Conv', 'MaxPool', *ACTIVATIONS],
                        nodes_to_quantize=in_8_bits(onnx.load(onnx_path).graph),
                        per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax)
        made = onnx.load(place)
    meta = meta | dict(precision='int8', int8=dict(images=reader.number))
    del made.metadata_props[:]
    entry = made.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(meta)
    onnx.checker.check_model(made, full_check=True)
    atomic_write(made.SerializeToString(), out_path)
    return meta


def _open(path: str | Path) -> tuple[OnnxModel, Mapping]:
    if Path(path).suffix != '.onnx':
        raise UserError(f'{path} is not an ONNX file; make one: hgd-det export CONFIG CHECKPOINT '
                        'model.onnx')
    model = open_model(path)
    meta = model.meta
    if meta.get('int8') or meta.get('precision') == 'float16':
        raise UserError(f'{path} is {"int8" if meta.get("int8") else "float16"} already; give the float32 '
                        'file that the export writes')
    return model, meta


def in_8_bits(graph) -> list[str]:
    """Names of the nodes to quantise: all convolutions after the first, and the activations and poolings
    that follow them."""
    chosen, carried = [], set()
    first = next((node.name for node in graph.node if node.op_type == 'Conv'), None)
    for node in graph.node:     # in the order of computation
        follows = node.op_type in ('MaxPool', *ACTIVATIONS) and node.input[0] in carried
        if follows or (node.op_type == 'Conv' and node.name != first):
            chosen.append(node.name)
            carried.update(node.output)
    return chosen


class _Reader:
    """What onnxruntime calibrates with: one input after another, then None."""

    def __init__(self, batches: Iterable[np.ndarray]):
        self._batches, self.number = iter(batches), 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        if batch is None:
            if not self.number:
                raise UserError('there is no image to calibrate with')
            return None
        self.number += 1
        return dict(images=batch)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without onnxruntime's advice to optimise the graph first: the export has done it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
