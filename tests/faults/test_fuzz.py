"""The readers of data sets stand a fuzz: 4000 inputs, the same everywhere, so that only a change breaks it.

HGD_DET_FUZZ_SECONDS goes on for as long as it says, HGD_DET_FUZZ_SEED begins elsewhere: both find more.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow, pytest.mark.faults,
    pytest.mark.skipif(not sys.platform.startswith('linux'), reason='measures memory as Linux counts it')
]
FUZZ = Path(__file__).with_name('fuzz_readers.py')
SECONDS = os.environ.get('HGD_DET_FUZZ_SECONDS')
LENGTH = ('--seconds', SECONDS) if SECONDS else ('--inputs', '4000')  # a minute
SEED = os.environ.get('HGD_DET_FUZZ_SEED', '0')
# `voc.judge` with a fault, and then the fuzz as it is
BROKEN = '''
import runpy, sys
from hgd_det.data import voc
voc.judge = lambda box, size: 1 / 0 if box[2] == 26 else None
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name='__main__')
'''


def run(*arguments, program=()):
    done = subprocess.run(
        [sys.executable, *program, FUZZ, *arguments], text=True, errors='replace',
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | dict(PYTHONPATH=f'{FUZZ.parents[2]}:{FUZZ.parent}', OMP_NUM_THREADS='1'),
        timeout=float(SECONDS or 4000) + 900)
    return done.returncode, done.stdout


def test_a_fuzz_of_the_readers_finds_nothing(tmp_path, capsys):
    status, said = run(*LENGTH, '--seed', SEED, '--failures', tmp_path)
    with capsys.disabled():
        print('\n' + said.strip().split('\n')[-1])
    assert status == 0 and not list(tmp_path.iterdir()), said[-8000:]
    inputs, outcomes = map(int, re.search(r'^(\d+) inputs .*, (\d+) outcomes', said, re.MULTILINE).groups())
    assert outcomes >= 30 and inputs >= 30, 'a fuzz that reaches nothing finds nothing'


def test_a_fault_of_a_reader_is_found_and_its_input_shows_it_again(tmp_path):
    broken = ('-c', BROKEN)
    status, said = run('--inputs', '0', '--failures', tmp_path, program=broken)
    assert status == 1 and 'ZeroDivisionError' in said
    saved = re.search(r'fuzz_readers\.py (\S+/xml-\w+)', said)[1]
    short = re.search(r'or: \S+ \S+ (xml:\S+)', said)[1]
    for given in (saved, short):
        status, said = run(given, program=broken)
        assert status != 0
        status, said = run(given)
        assert status == 0 and 'check difficult' in said
