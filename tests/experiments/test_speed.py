from hgd_det.experiments.speed import cost


def test_what_a_detector_costs_is_counted_and_timed():
    params, macs, rate = cost('configs/shapes/student.py')
    assert (params, macs) == ('0.465 M', '0.0551 G') and float(rate) > 0
