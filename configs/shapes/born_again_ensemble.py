# The mean of the three generations that configs/shapes/born_again.py trains; nothing is trained here.
#
#   python tools/train.py configs/shapes/born_again.py
#   python tools/test.py configs/shapes/born_again_ensemble.py
_base_ = './student.py'

model = dict(
    _delete_=True,
    type='Ensemble',
    members=[
        dict(config='configs/shapes/student.py', checkpoint='work_dirs/shapes/born_again/gen1'),
        dict(config='configs/shapes/student.py', checkpoint='work_dirs/shapes/born_again/gen2'),
        dict(config='configs/shapes/student.py', checkpoint='work_dirs/shapes/born_again/gen3'),
    ])
