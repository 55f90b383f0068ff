"""ONNX files: a detector's graph, with standard operators only, and what one must know to use it."""
from __future__ import annotations

import contextlib
import json
import logging
import warnings
from pathlib import Path

import torch

from hgd_det.checkpoint import atomic_write
from hgd_det.deploy.graph import DetectorGraph
from hgd_det.deploy.postprocess import Settings
from hgd_det.errors import UserError

OPSET = 18
KEY = 'hgd_det'      # of the metadata


def program(graph: DetectorGraph) -> torch.export.ExportedProgram:
    """The traced graph, for batches of any size."""
    example = torch.zeros(2, graph.height, graph.width, 3, dtype=torch.uint8)
    return torch.export.export(graph, (example,), strict=False,
                               dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))


def write(traced: torch.export.ExportedProgram, path: str | Path, meta: dict,
          settings: Settings | None = None) -> None:
    """The program as ONNX; with `settings` its outputs are detections after NMS.

    ::

        raw       boxes (B, M, 4), scores (B, M, C): one per anchor
        with NMS  boxes (B, K, 4), scores (B, K), labels (B, K): the K best, padded with score 0
                  and label -1
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch's exporter is written with it
    except ImportError as error:
        raise UserError(f'ONNX export needs the package {error.name}: pip install onnx onnxscript '
                        'onnxruntime') from None
    names = ['boxes', 'scores'] if settings is None else ['all_boxes', 'all_scores']
    with _quiet():
        model = torch.onnx.export(traced, input_names=['images'], output_names=names, dynamo=True,
                                  opset_version=OPSET, verbose=False, external_data=False).model_proto
    _name_batch(model.graph)
    if settings is not None:
        _append_nms(model, settings)
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(meta)
    onnx.checker.check_model(model, full_check=True)
    atomic_write(model.SerializeToString(), path)


@contextlib.contextmanager
def _quiet():
    """Without the exporter's notes on packages that are not needed here."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def _name_batch(graph) -> None:
    """Call the free dimension `batch`; tracing gives it a number of its own."""
    traced = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(traced, 'batch')


def _append_nms(model, settings: Settings) -> None:
    """Put mmdet's choice of detections behind the model's outputs; see :class:`Settings`."""
    from onnx import parser

    boxes, scores = (output.type.tensor_type.shape.dim for output in model.graph.output)
    anchors, classes = boxes[1].dim_value, scores[2].dim_value
    keep = min(settings.keep, anchors * classes)
    tail = parser.parse_graph(f'''
        nms (float[batch,{anchors},4] all_boxes, float[batch,{anchors},{classes}] all_scores)
            => (float[batch,{keep},4] boxes, float[batch,{keep}] scores, int64[batch,{keep}] labels)
        {{
            zero = Constant <value_float: float = 0.0> ()
            first = Constant <value_ints: ints = [1]> ()
            last = Constant <value_ints: ints = [2]> ()
            most = Constant <value_ints: ints = [{keep}]> ()
            flat = Constant <value_ints: ints = [0, -1]> ()
            {_cut(settings, anchors, classes)}
            lower, upper = Split <axis: int = 2, num_outputs: int = 2> (all_boxes)
            extends = Greater (upper, lower)
            extends_number = Cast <to: int = 1> (extends)
            real = ReduceMin <keepdims: int = 1> (extends_number, last)
            real_scores = Mul (cut_scores, real)
            by_class = Transpose <perm: ints = [0, 2, 1]> (real_scores)
            iou = Constant <value_floats: floats = [{settings.iou!r}]> ()
            threshold = Constant <value_floats: floats = [{settings.score!r}]> ()
            chosen = NonMaxSuppression (all_boxes, by_class, most, iou, threshold)
            shape = Shape (by_class)
            nothing = ConstantOfShape (shape)
            chosen_scores = GatherND (by_class, chosen)
            survivors = ScatterND (nothing, chosen, chosen_scores)
            flat_survivors = Reshape (survivors, flat)
            scores, index = TopK <axis: int = 1> (flat_survivors, most)
            count = Constant <value_int: int = {anchors}> ()
            label = Div (index, count)
            anchor = Mod (index, count)
            column = Unsqueeze (anchor, last)
            corners = Constant <value_ints: ints = [1, 1, 4]> ()
            places = Expand (column, corners)
            kept_boxes = GatherElements <axis: int = 1> (all_boxes, places)
            found = Greater (scores, zero)
            none = Constant <value_int: int = -1> ()
            labels = Where (found, label, none)
            found_column = Unsqueeze (found, last)
            boxes = Where (found_column, kept_boxes, zero)
        }}''')
    outside = {value.name for value in (*tail.input, *tail.output)}
    for node in tail.node:
        for names in (node.input, node.output):
            names[:] = [name if name in outside else f'nms/{name}' for name in names]
        node.name = f'nms/{node.output[0]}'.replace('nms/nms/', 'nms/')
    model.graph.node.extend(tail.node)
    del model.graph.output[:]
    model.graph.output.extend(tail.output)


def _cut(settings: Settings, anchors: int, classes: int) -> str:
    """Nodes that set to 0, level by level, what is not among the best `before` pairs."""
    if not settings.cut(classes):
        return 'cut_scores = Identity (all_scores)'
    sizes = ', '.join(map(str, settings.levels))
    cut = {anchors.start: count for anchors, count in settings.cut(classes)}
    names = [f'level{i}' for i in range(len(settings.levels))]
    lines = [f'sizes = Constant <value_ints: ints = [{sizes}]> ()',
             f'{", ".join(names)} = Split <axis: int = 1> (all_scores, sizes)']
    start = 0
    for i, (name, size) in enumerate(zip(list(names), settings.levels, strict=True)):
        if count := cut.get(start):
            lines.append(f'''
            count{i} = Constant <value_ints: ints = [{count}]> ()
            flat{i} = Reshape ({name}, flat)
            top{i}, place{i} = TopK <axis: int = 1> (flat{i}, count{i})
            least{i} = ReduceMin <keepdims: int = 1> (top{i}, first)
            bound{i} = Unsqueeze (least{i}, last)
            stays{i} = GreaterOrEqual ({name}, bound{i})
            stays_number{i} = Cast <to: int = 1> (stays{i})
            cut{i} = Mul ({name}, stays_number{i})''')
            names[i] = f'cut{i}'
        start += size
    lines.append(f'cut_scores = Concat <axis: int = 1> ({", ".join(names)})')
    return '\n'.join(lines)


def initializers(path: str | Path) -> dict[str, torch.Tensor]:
    """The weights in a file; none where the onnx package is not there to read them."""
    try:
        from onnx import TensorProto, load, numpy_helper
    except ImportError:
        return {}
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    return {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in load(path).graph.initializer if tensor.data_type in kinds}


def read_note(session) -> str:
    """What `write` noted in the file, as JSON, from an onnxruntime session; '' for files of other origin."""
    return session.get_modelmeta().custom_metadata_map.get(KEY, '')
