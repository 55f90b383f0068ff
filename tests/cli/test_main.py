"""Finding verbs, and what becomes of their errors."""

import subprocess
import sys
import textwrap
import time

import pytest

import hgd_det
from hgd_det.cli import main as cli
from hgd_det.errors import UserError

VERB = '''\
"""Do the fake thing.

More about it."""
from hgd_det.errors import UserError

def add_arguments(parser):
    parser.add_argument('--number', type=int, default=0)

def run(args):
'''


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """Make `fake-verb` the only verb, with the given body of `run`."""
    def make(body='return args.number'):
        path = tmp_path / 'fake_verb.py'
        path.write_text(VERB + textwrap.indent(body, '    '))
        monkeypatch.setattr(cli, 'verbs', lambda: {'fake-verb': path})
        monkeypatch.setattr('hgd_det.cli.__path__', [str(tmp_path)])
        monkeypatch.delitem(sys.modules, 'hgd_det.cli.fake_verb', raising=False)
        sys.path_importer_cache.pop(str(tmp_path), None)
    yield make
    sys.modules.pop('hgd_det.cli.fake_verb', None)
    if hasattr(sys.modules['hgd_det.cli'], 'fake_verb'):
        del sys.modules['hgd_det.cli'].fake_verb


def test_the_exit_status_is_the_verbs(verb):
    verb()
    assert cli.main(['fake-verb']) == 0
    assert cli.main(['fake-verb', '--number', '3']) == 3


def test_a_verb_that_returns_nothing_succeeds(verb):
    verb('pass')
    assert cli.main(['fake-verb']) == 0


def test_help_lists_each_verb_with_its_first_line(verb, capsys):
    verb()
    with pytest.raises(SystemExit) as caught:
        cli.main(['--help'])
    assert caught.value.code == 0
    assert '  fake-verb  Do the fake thing.\n' in capsys.readouterr().out
    assert 'hgd_det.cli.fake_verb' not in sys.modules


def test_without_arguments_help_goes_to_stderr_and_the_status_is_2(verb, capsys):
    verb()
    assert cli.main([]) == 2
    assert 'fake-verb' in capsys.readouterr().err


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(['--version'])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f'hgd-det {hgd_det.__version__}\n'


@pytest.mark.parametrize('given, wanted', [('fake-verv', 'did you mean fake-verb?'),
                                           ('zzz', 'there are fake-verb')])
def test_an_unknown_verb_suggests_near_names(verb, capsys, given, wanted):
    verb()
    assert cli.main([given]) == 2
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize('body', [
    'raise UserError("tap c4 is gone")',
    # another error from a user's error
    'try:\n    raise UserError("tap c4 is gone")\n'
    'except UserError as e:\n    raise RuntimeError("build failed") from e',
    # as registries of mmengine do
    'try:\n    raise UserError("tap c4 is gone")\n'
    'except UserError as e:\n    raise type(e)(f"class `X` in x.py: {e}")',
    # as a data loader's worker does
    'raise UserError("Caught UserError in DataLoader worker process 0.\\nOriginal Traceback (most '
    'recent call last):\\n  File\\nhgd_det.errors.UserError: tap c4 is gone\\n")',
])
def test_a_users_error_is_one_message_and_status_2(verb, capsys, body):
    verb(body)
    assert cli.main(['fake-verb']) == 2
    assert capsys.readouterr().err == 'error: tap c4 is gone\n'


def test_a_users_error_raised_from_another_keeps_its_own_words(verb, capsys):
    verb('raise UserError("teacher a.pth: no such key") from UserError("no such key")')
    assert cli.main(['fake-verb']) == 2
    assert capsys.readouterr().err == 'error: teacher a.pth: no such key\n'


def test_an_error_while_handling_a_users_error_is_not_hidden(verb):
    verb('try:\n    raise UserError("tap")\nexcept UserError:\n    1 / 0')
    with pytest.raises(ZeroDivisionError):
        cli.main(['fake-verb'])


@pytest.mark.parametrize('body', ['raise ValueError("ours")', 'import no_such_module'])
def test_our_own_mistakes_keep_their_traceback(verb, body):
    verb(body)
    with pytest.raises((ValueError, ImportError)):
        cli.main(['fake-verb'])


def test_a_users_error_shows_its_traceback_on_request(verb, monkeypatch):
    monkeypatch.setenv('HGD_DET_TRACEBACK', '1')
    verb('raise UserError("tap c4 is gone")')
    with pytest.raises(UserError):
        cli.main(['fake-verb'])


def test_opencv_without_graphics_libraries_is_a_users_error(verb, capsys):
    verb('raise ImportError("libGL.so.1: cannot open shared object file: No such file")')
    assert cli.main(['fake-verb']) == 2
    assert 'opencv-python-headless' in capsys.readouterr().err


def test_control_c_ends_with_130(verb, capsys):
    verb('raise KeyboardInterrupt')
    assert cli.main(['fake-verb']) == 130
    assert capsys.readouterr().err == 'interrupted\n'


def test_every_verb_has_a_help_line_and_explains_itself(capsys):
    found = cli.verbs()
    assert found
    for verb, file in found.items():
        assert 10 < len(cli.summary(file)) < 100, verb
        with pytest.raises(SystemExit) as caught:
            cli.main([verb, '--help'])
        assert caught.value.code == 0
        assert f'usage: hgd-det {verb}' in capsys.readouterr().out


def test_help_imports_nothing_heavy_and_is_quick():
    code = ('import sys; from hgd_det.cli.main import main\n'
            'try: main(["--help"])\n'
            'finally: assert not {"torch", "numpy", "mmdet"} & set(sys.modules)')
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and 'verbs:' in done.stdout, done.stderr
    assert time.perf_counter() - start < 2  # 0.1 s where nobody else uses the machine
