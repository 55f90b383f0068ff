import pytest

from hgd_det.errors import near


@pytest.mark.parametrize('word, names, wanted', [
    ('hgd', ['HGD', 'HG'], ['HGD', 'HG']),          # the same but for its case
    ('resumr', ['resume'], ['resume']), ('LX', ['LD', 'Long'], ['LD']), ('mdoel', ['model'], ['model']),
    ('NT', ['NST', 'Next'], ['NST']), ('ab', ['ba'], ['ba']), ('abcd', ['badc'], [])])
def test_names_one_slip_away_come_first_however_short(word, names, wanted):
    assert near(word, names, cutoff=0.9) == wanted


def test_then_come_those_with_the_most_letters_in_common():
    assert near('RetinaNetHed', ['RetinaHead', 'FCOSHead', 'RetinaNetHead'], 2)[0] == 'RetinaNetHead'
    assert near('xyz', ['model']) == []
