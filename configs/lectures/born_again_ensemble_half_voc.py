# The mean of the three generations that configs/lectures/born_again_half_voc.py trains; nothing is trained
# here. No published number for SSD.
#
#   python tools/train.py configs/lectures/born_again_half_voc.py
#   python tools/test.py configs/lectures/born_again_ensemble_half_voc.py
_base_ = '../ssd/ssd300_half_voc.py'

model = dict(
    _delete_=True,
    type='Ensemble',
    members=[
        dict(
            config='configs/ssd/ssd300_half_voc.py',
            checkpoint='work_dirs/lectures/born_again_half_voc/gen1'),
        dict(
            config='configs/ssd/ssd300_half_voc.py',
            checkpoint='work_dirs/lectures/born_again_half_voc/gen2'),
        dict(
            config='configs/ssd/ssd300_half_voc.py',
            checkpoint='work_dirs/lectures/born_again_half_voc/gen3'),
    ])
