"""Charts: well-formed, with words for those who do not see them, and nothing outside."""
import re
import xml.etree.ElementTree as ET

import pytest

from hgd_det.report import charts
from hgd_det.report.charts import Series, apart, decades, lines, ticks

SERIES = [Series('alone & co', [(20, 9.0), (40, 3.0), (60, 2.0)], 1),
          Series('hgd', [(20, 8.0), (60, 1.9)], 2)]
CHARTS = {
    'lines': lines('Loss', 'it falls', SERIES),
    'log': lines('Loss', 'it falls', SERIES, log=True),
    'bars': charts.bars('AP', 'by class', ['disc', 'a very long name'], [('<alone>', 1, [.5, None])]),
    'dots': charts.dots('mAP', 'each', [('big', 0, .8), ('alone', 1, .4), ('hgd', 2, .38)], .4, .8),
    'stacked': charts.stacked('Errors', 'each', [('alone', [('found', 0, 10), ('missed', 3, 0)])]),
    'scatter': charts.scatter('Speed', 'each', [('big', 0, 12.5, .8), ('hgd', 2, 7.0, .6)]),
}


@pytest.mark.parametrize('name', CHARTS)
def test_a_chart_is_well_formed_titled_and_described(name):
    root = ET.fromstring(CHARTS[name])
    space = '{http://www.w3.org/2000/svg}'
    assert root.attrib['role'] == 'img' and root.find(f'{space}title').text and root.find(f'{space}desc').text


@pytest.mark.parametrize('name', CHARTS)
def test_nothing_lies_outside_the_chart(name):
    root = ET.fromstring(CHARTS[name])
    width, height = map(float, root.attrib['viewBox'].split()[2:])
    for node in root.iter():
        for key, limit in (('x', width), ('cx', width), ('y', height), ('cy', height)):
            assert -1 <= float(node.attrib.get(key, 0)) <= limit + 1, (node.tag, node.attrib)


def test_a_higher_value_is_drawn_higher_and_a_later_one_further_right():
    points = re.search(r'points="([^"]+)"', CHARTS['lines'])[1].split()
    (x1, y1), (x2, y2), _ = (map(float, point.split(',')) for point in points)
    assert x1 < x2 and y1 < y2    # from 9 to 3, and y counts downwards


def test_bars_are_as_long_as_their_values():
    root = ET.fromstring(charts.bars('AP', '', ['disc'], [('one', 1, [.5]), ('two', 2, [1.0])]))
    widths = [float(node.attrib['width']) for node in root.iter('{http://www.w3.org/2000/svg}rect')]
    assert widths[0] * 2 == pytest.approx(widths[1], abs=.2)


def test_ticks_are_round_and_enclose_the_values():
    assert ticks(0, 500, 4) == [0, 200, 400, 600] and ticks(.41, .83) == [.4, .5, .6, .7, .8, .9]
    assert decades(2.3, 24) == [2, 5, 10, 20, 50] and decades(.01, 50) == [.01, .1, 1, 10, 100]


def test_names_that_would_overlap_are_moved_apart_and_keep_their_order():
    moved = apart([50, 10, 52, 51], 12)
    assert sorted(range(4), key=moved.__getitem__) == [1, 0, 3, 2]
    close = sorted(moved)
    assert all(b - a >= 12 - 1e-9 for a, b in zip(close, close[1:], strict=False))
