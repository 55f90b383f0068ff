"""What a training step costs."""
import csv

import pytest

from hgd_det.cli.main import main
from hgd_det.experiments.cost import phases

DISTILL = '''
_base_ = {student!r}
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}},
             teacher=dict(model={student!r}, checkpoint='untrained'), input_size=96,
             terms=dict(factor=dict(type='FactorTransfer', pretrain=0.5)))
'''


def test_a_phase_counts_by_its_share_of_the_training():
    one, two = frozenset({'loss'}), frozenset({'loss', 'loss_kd'})
    steps = [(.1, one), (.3, two), (.2, two), (9., two)]
    assert phases(steps) == [(.25, 100.), (.75, 300.)]


@pytest.mark.slow
def test_a_table_with_each_configs_time_and_memory(config, tmp_path, capsys):
    distill = tmp_path / 'distill.py'
    distill.write_text(DISTILL.format(student=str(config)))
    out = tmp_path / 'cost.csv'
    assert main(['cost', str(distill), '--reference', str(config), '--repeat', '2', '--csv', str(out)]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[-4] == ['config', 'method', 'step_ms', 'step_ratio', 'memory_mb', 'memory_ratio', 'phases']
    alone, taught = csv.DictReader(out.open())
    assert (alone['config'], taught['config']) == (str(config), str(distill))
    assert alone['step_ratio'] == alone['memory_ratio'] == '1.000'
    assert float(taught['step_ms']) > 0 and float(taught['memory_mb']) > float(alone['memory_mb']) > 0
    assert alone['phases'].startswith('100%:')
    assert [phase.partition(':')[0] for phase in taught['phases'].split()] == ['50%', '50%']
    assert (taught['batch'], taught['repeat'], taught['threads']) == ('4', '2', '1')
    assert taught['device'] and taught['torch'] and taught['python']


def test_what_cannot_be_measured_is_said(config, tmp_path, capsys):
    assert main(['cost', str(config), '--repeat', '0']) == 2
    assert '--repeat 0: give 1 or more' in capsys.readouterr().err
    nothing = tmp_path / 'nothing.py'
    nothing.write_text(f'_base_ = {str(config)!r}\ntrain_dataloader = None\n')
    assert main(['cost', str(config), '--reference', str(nothing)]) == 2
    assert 'trains nothing; give another' in capsys.readouterr().err


@pytest.mark.slow
def test_generations_cost_as_much_as_their_trainings_together(config, tmp_path):
    several, out = tmp_path / 'several.py', tmp_path / 'cost.csv'
    several.write_text(DISTILL.format(student=str(config)).replace(
        "factor=dict(type='FactorTransfer', pretrain=0.5)", "kd=dict(type='LogitKD')").replace(
        ", checkpoint='untrained'", '') + 'generations = 3\n')
    assert main(['cost', str(several), '--reference', str(config), '--repeat', '2', '--csv', str(out)]) == 0
    alone, taught = csv.DictReader(out.open())
    parts = dict(part.split(':') for part in taught['phases'].split())
    assert list(parts) == ['gen1', 'gen2', 'gen3'], 'the first has nobody to learn from'
    assert abs(float(taught['step_ms']) - sum(map(float, parts.values()))) < 0.3
    assert float(parts['gen2']) > float(parts['gen1'])
    assert float(taught['memory_mb']) > float(alone['memory_mb'])


def test_a_pair_is_measured_under_each_method_and_a_detector_as_it_is():
    from argparse import Namespace

    from hgd_det.cli.cost import _named
    args = Namespace(configs=['shapes', 'shapes/student'], method=['hint', 'hgd+logit_kd'],
                     reference=['shapes', 'hgd'])
    assert _named(args) == [('shapes', 'hgd'), ('shapes', 'hint'), ('shapes', 'hgd+logit_kd'),
                            ('shapes/student', '')]
    assert main(['cost', 'shapes']) == 2
