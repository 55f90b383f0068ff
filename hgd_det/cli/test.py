"""Evaluate a checkpoint on the test set of a config."""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_config, add_force, add_run, at_least, configure, folder, json_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('checkpoint', metavar='CHECKPOINT', nargs='?',
                        help='weights of the detector, .pth or .safetensors; a checkpoint of a '
                             'distillation works as it is. Only an ensemble needs none: its config '
                             'names those of its members')
    # by itself argparse takes an optional positional for missing once a flag follows CONFIG
    parser.parse_args = parser.parse_intermixed_args
    add_run(parser, 'the log goes, not the folder of a training (default: work_dirs/test')
    parser.add_argument('--json', metavar='OUT', type=json_file,
                        help='also write the figures, unrounded, with the versions and the sha256 '
                             'of the checkpoint')
    add_force(parser)
    parser.add_argument('--batch-size', type=at_least(1), metavar='N',
                        help='images per step (the figures do not depend on it)')
    parser.add_argument('--show-dir', metavar='DIR', type=folder,
                        help='write the images with what was found')


def run(args: argparse.Namespace) -> int:
    from mmengine.dist import is_main_process

    from hgd_det.engine.folder import not_a_trainings
    from hgd_det.engine.runner import orderly_end
    from hgd_det.outputs import keep_originals, named_files

    if args.work_dir:
        not_a_trainings(args.work_dir)
    cfg = configure(args, trains=False)
    if args.json:
        keep_originals([args.json], named_files([str(args.config), args.checkpoint, cfg.to_dict()]),
                       force=args.force)
    if args.batch_size:
        cfg.test_dataloader.batch_size = args.batch_size
    if args.show_dir:
        cfg.visualizer = cfg.get('visualizer') or dict(type='DetLocalVisualizer', name='visualizer')
        hooks = dict(cfg.get('default_hooks') or {})
        hooks['visualization'] = {'type': 'DetVisualizationHook', **hooks.get('visualization', {}),
                                  'draw': True, 'test_out_dir': args.show_dir}
        cfg.default_hooks = hooks
    with orderly_end():
        metrics = evaluate(cfg, args.checkpoint)
        if is_main_process():
            print(table(metrics))
            if args.json:
                _write(args, metrics, weights(cfg, args.checkpoint))
    return 0


def evaluate(cfg, checkpoint: str | None = None) -> dict[str, float]:
    """The metrics of a checkpoint, loaded strictly, or of a detector whose config names its own.

    Of a distiller only the student is built. Its log goes to the config's work_dir, but never into the folder
    of a training.
    """
    from mmengine.model import is_model_wrapper

    from hgd_det.checkpoint import load
    from hgd_det.deploy.evaluate import compare_names
    from hgd_det.engine.folder import is_a_trainings
    from hgd_det.engine.mistakes import user_errors
    from hgd_det.engine.runner import TESTS, build_runner, default_work_dir, plain
    from hgd_det.errors import UserError
    from hgd_det.weights import class_names, load_into, student_state_dict

    cfg = plain(cfg)
    if not cfg.get('test_dataloader'):
        raise UserError('the config has no test_dataloader, so there is nothing to test on')
    if is_a_trainings(cfg.work_dir):    # where `load_config` lets the config be trained
        cfg.work_dir = str(default_work_dir(cfg.filename, root=TESTS))
    files = weights(cfg, checkpoint)  # before anything slow
    content = load(checkpoint) if checkpoint else {}
    cfg.load_from, cfg.resume = None, False
    with user_errors():
        runner = build_runner(cfg)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if checkpoint:
            load_into(model, student_state_dict(content), what=f'checkpoint {checkpoint}')
            trained = class_names(content)
        else:
            model.init_weights()
            trained = model.dataset_meta.get('classes')
        tested = getattr(runner.test_dataloader.dataset, 'metainfo', {}).get('classes')
        if trained and tested:
            compare_names(files[0], trained, tested)
        return runner.test()


def weights(cfg, checkpoint: str | None) -> list:
    """The files that are tested: the one given, or those that the config itself names."""
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    import hgd_det.registered  # noqa: F401
    from hgd_det.errors import UserError

    if checkpoint:
        return [checkpoint]
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet'):
        named = getattr(MODELS.get(cfg.model.type), 'checkpoints', None)
    if named is None:
        raise UserError('the CHECKPOINT to test is missing: hgd-det test CONFIG CHECKPOINT')
    return named(cfg.model)


def table(metrics: dict[str, float]) -> str:
    """Per-class figures (`PREFIX/NAME/CLASS`) in one row each, then the others; in percent.

    A dash stands for a figure that does not exist; COCO marks them with -1.
    """
    columns, rows, rest = [], {}, []
    for key, value in metrics.items():
        _, *names = key.split('/', 2)
        if len(names) == 2:
            rows.setdefault(names[1], {})[names[0]] = value
            columns += [names[0]] if names[0] not in columns else []
        elif isinstance(value, (int, float)):
            rest.append((key, value))
    width = max(map(len, [*rows, *(key for key, _ in rest), 'class']))
    lines = []
    if rows:
        lines.append('class'.ljust(width) + ''.join(name.rjust(15) for name in columns))
        for name, values in rows.items():
            cells = [_cell(values.get(column, -1)) for column in columns]
            lines.append(name.ljust(width) + ''.join(cells))
    lines += [key.ljust(width) + _cell(value) for key, value in rest]
    return '\n'.join(lines)


def _cell(value: float) -> str:
    return (f'{100 * value:.2f}' if value >= 0 else '-').rjust(15)


def _write(args: argparse.Namespace, metrics: dict, files: list) -> None:
    import json

    from hgd_det.checkpoint import atomic_write, sha256
    from hgd_det.compat import versions

    tested = [{'path': str(file), 'sha256': sha256(file)} for file in files]
    result = {'metrics': metrics, 'config': str(args.config), 'method': args.method,
              'cfg_options': args.cfg_options,
              'checkpoint': tested[0] if args.checkpoint else tested, 'versions': versions()}
    atomic_write(json.dumps(result, indent=2) + '\n', args.json)
    print(f'written to {args.json}')
