"""Models are timed in turns, on the same images, and the machine is left as it was."""
import json

import numpy as np
import pytest
import torch

from hgd_det.cli.main import main
from hgd_det.deploy import bench as module
from hgd_det.deploy.bench import bench, measure, noise, short_names, summary
from hgd_det.deploy.bench_table import table
from hgd_det.errors import UserError

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def report(checkpoint, onnx_raw, onnx_nms):
    return bench([checkpoint, onnx_raw, onnx_nms], batches=(1, 3), threads=(1, 2), repeat=3, warmup=1,
                 memory=False)


def test_models_take_turns_and_the_first_call_of_a_turn_is_not_timed(monkeypatch):
    log = []
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, 'perf_counter_ns', lambda: log.append('|') or next(clock))
    calls = [lambda n: log.append(f'a{n}'), lambda n: log.append(f'b{n}')]
    spent = measure(calls, repeat=7, warmup=2)
    assert spent == [[1] * 7] * 2
    assert ''.join(log) == ('a0a1b0b1'
                            'a0|a0||a1||a2||a3||a4|' 'b0|b0||b1||b2||b3||b4|'
                            'a5|a5||a6|' 'b5|b5||b6|')


def test_the_summary_holds_median_percentile_and_throughput():
    found = summary([1_000_000, 2_000_000, 3_000_000, 4_000_000, 10_000_000], 6)
    assert (found['median_ms'], found['images_per_s']) == (3.0, 2000.0)
    assert found['p95_ms'] == pytest.approx(8.8)
    assert found['ms'] == [1, 2, 3, 4, 10]


@pytest.mark.slow
def test_every_combination_of_batch_and_threads_is_timed_for_every_model(report):
    assert [(row['batch'], row['threads'], row['model']) for row in report['times']] == [
        (batch, threads, name) for threads in (1, 2) for batch in (1, 3)
        for name in ('tiny.pth', 'raw.onnx', 'nms.onnx')]
    for row in report['times']:
        assert len(row['ms']) == 3 and 0 < row['median_ms'] <= row['p95_ms']


def test_the_report_says_what_each_model_is(checkpoint, report):
    pth, raw, nms = report['models']
    assert pth['runtime'] == 'torch' and raw['runtime'] == 'onnxruntime'
    assert (raw['nms_inside'], nms['nms_inside']) == (False, True)
    assert pth['bytes'] == checkpoint.stat().st_size
    content = torch.load(checkpoint, weights_only=True)['state_dict']
    assert pth['params'] == sum(value.numel() for key, value in content.items()
                                if 'running' not in key and 'num_batches' not in key)
    assert pth['macs'] > 1e6 and pth['input_size'] == [96, 96]
    assert report['versions']['torch'] and report['host']['cores'] >= 1
    json.dumps(report)


def test_what_the_export_noted_is_shown_of_exported_files(checkpoint, tmp_path):
    pytest.importorskip('onnxscript')
    from hgd_det.deploy.export import export
    from hgd_det.deploy.student import load_student
    done = export(load_student(checkpoint), tmp_path, ['onnx', 'torch'])
    found = bench([checkpoint, *done.files.values()], batches=[1], threads=[1], repeat=1, warmup=0,
                  memory=False)
    pth, onnx, program = found['models']
    for row in (onnx, program):
        assert {key: row[key] for key in ('params', 'macs', 'precision')} == {
            key: pth[key] for key in ('params', 'macs', 'precision')}


def test_all_models_see_the_same_images_resized_to_their_input(checkpoint, onnx_raw, monkeypatch):
    seen = {}
    opened = module.open_model

    def spying(path, *rest, **kwargs):
        model = opened(path, *rest, **kwargs)
        detect = model.detect
        model.detect = lambda batch: seen.setdefault(path, []).append(batch) or detect(batch)
        return model
    monkeypatch.setattr(module, 'open_model', spying)
    images = [np.full((40, 50 + i, 3), 9 * i, np.uint8) for i in range(3)]
    found = bench([checkpoint, onnx_raw], batches=[2], threads=[1], repeat=2, warmup=0, images=images,
                  memory=False)
    assert found['images'] == '3 images'
    one, other = seen.values()
    assert len(one) == 3 and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert one[0].shape == (2, 96, 96, 3) and one[0].dtype == np.uint8
    assert one[0][1].max() == 9


def test_threads_are_set_for_the_measurement_and_restored(checkpoint, monkeypatch):
    before, during = torch.get_num_threads(), []
    monkeypatch.setattr(module, 'measure', lambda calls, repeat, warmup: [
        during.append(torch.get_num_threads()) or [1] for _ in calls])
    bench([checkpoint], batches=[1], threads=[1, 3], memory=False)
    assert during == [1, 3] and torch.get_num_threads() == before


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own(onnx_raw):
    batch = np.stack(noise(64, (96, 96)))
    found = module.peak_memory(module.partial(module.open_model, onnx_raw), batch, 1, False)
    assert 4 * batch.size < found['bytes'] < found['process_bytes']    # the normalised batch alone
    assert (found['batch'], found['threads']) == (64, 1)


def test_the_table_fits_and_names_every_model_and_what_was_timed(report):
    text = table(report)
    assert max(map(len, text.splitlines())) <= 110
    for part in ('tiny.pth', 'raw.onnx', 'onnxruntime + NMS', 'detections after NMS', 'Shown: noise',
                 '1.00x'):
        assert part in text
    assert '| batch | threads | model |' in table(report, markdown=True)


def test_a_table_with_everything_and_long_names_fits(report):
    full = json.loads(json.dumps(report))
    for row in (*full['models'], *full['times']):
        row['model'] = 'a/long/way/to/some/folder/with/many/parts/' + row['model']
    for row in full['models']:
        row |= dict(memory=dict(bytes=123_000_000, batch=8, threads=2), params=26_285_486,
                    macs=31_370_000_000, precision='float32', bytes=105_000_000,
                    metrics={'coco/bbox_mAP': 0.25, 'coco/AP/x': 1})
    text = table(full)
    assert max(map(len, text.splitlines())) <= 110
    assert '25.00' in text and '26.3 M' in text and '31.4 G' in text and '123' in text
    assert '…' in text and 'parts/raw.onnx' in text


def test_a_busy_machine_is_pointed_out(report):
    busy, idle = (table(report | dict(host=report['host'] | dict(load=load, cores=2))) for load in (1.5, 0.5))
    assert 'The machine was busy with other work (load 1.5 on 2 cores)' in busy and 'busy' not in idle


def test_names_are_as_long_as_it_takes_to_tell_them_apart():
    assert short_names(['a/x.pth', 'a/y.onnx']) == ['x.pth', 'y.onnx']
    assert short_names(['a/x.pth', 'b/x.pth']) == ['a/x.pth', 'b/x.pth']


@pytest.mark.parametrize('change, reason', [
    (dict(batches=[0]), '--batch 0'), (dict(threads=[-1]), '--threads -1'), (dict(repeat=0), '--repeat 0'),
    (dict(paths=['a.pth', './a.pth']), 'given twice'), (dict(paths=['no.onnx']), 'does not exist')])
def test_what_cannot_be_measured_is_refused(checkpoint, change, reason):
    with pytest.raises(UserError, match=reason):
        bench(**dict(dict(paths=[checkpoint]), **change))


def test_a_model_for_any_size_needs_one_to_be_timed(checkpoint):
    options = ['test_dataloader.dataset.pipeline.1.keep_ratio=True']
    with pytest.raises(UserError, match='--size HEIGHT WIDTH'):
        bench([checkpoint], options=options)
    found = bench([checkpoint], options=options, size=(96, 96), batches=[1], threads=[1], repeat=1,
                  warmup=0, memory=False)
    assert found['models'][0]['input_size'] == [96, 96]


def test_the_verb_prints_the_table_and_writes_everything(checkpoint, onnx_raw, tmp_path, capsys, monkeypatch):
    memory = dict(bytes=7_000_000, process_bytes=300_000_000, batch=1, threads=1)
    monkeypatch.setattr(module, 'peak_memory', lambda *args: memory)
    out = tmp_path / 'bench.json'
    assert main(['bench', str(checkpoint), str(onnx_raw), '--batch', '1', '--threads', '1', '--repeat', '2',
                 '--warmup', '0', '--json', str(out)]) == 0
    found, said = json.loads(out.read_text()), capsys.readouterr().out
    assert f'{found["times"][1]["median_ms"]:.2f}' in said and 'peak MB' in said
    assert [row['memory'] for row in found['models']] == [memory] * 2


def test_configs_are_given_in_the_order_of_the_checkpoints(checkpoint, onnx_raw, capsys):
    assert main(['bench', str(checkpoint), str(onnx_raw), '--config', 'auto', 'auto']) == 2
    assert '2 given for 1 checkpoints' in capsys.readouterr().err
