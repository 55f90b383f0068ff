"""Examples run as a reader runs them: in a process of their own, which imports nothing before them."""
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
SHORT = '''
import importlib.util
spec = importlib.util.spec_from_file_location('example', {path!r})
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)
example.TEACHER_STEPS, example.STUDENT_STEPS, example.BATCH = 3, 22, 4
first, last = example.main()
assert last < first * 0.9, (first, last)
'''


def test_the_one_file_example_runs_and_its_imitation_falls():
    script = SHORT.format(path=str(ROOT / 'examples' / 'distill_in_one_file.py'))
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'the student kept for use' in done.stdout


def test_the_comparing_example_explains_itself():
    path = str(ROOT / 'examples' / 'compare_detections.py')
    done = subprocess.run([sys.executable, path, '--help'], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and '--model NAME CONFIG CHECKPOINT' in done.stdout
