# The mean of the three generations of half-width SSD300 that Born-Again trains; nothing is
# trained here.
#
#   hgd-det train ssd_half_voc --method born_again
#   python tools/test.py configs/ssd/born_again_ensemble_half_voc.py
_base_ = '../ssd/ssd300_half_voc.py'

model = dict(
    _delete_=True,
    type='Ensemble',
    members=[dict(config='configs/ssd/ssd300_half_voc.py',
                  checkpoint=f'work_dirs/ssd_half_voc/born_again/gen{number}') for number in (1, 2, 3)])
