import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'examples' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_one_file_example_runs_and_its_imitation_falls(capsys):
    example = load('distill_in_one_file')
    example.TEACHER_STEPS, example.STUDENT_STEPS, example.BATCH = 3, 22, 4
    first, last = example.main()
    assert last < first * 0.9
    assert 'the student kept for use' in capsys.readouterr().out
