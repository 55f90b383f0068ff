# The mean of the three generations of the tiny student that Born-Again trains; nothing is
# trained here.
#
#   hgd-det train shapes --method born_again
#   python tools/test.py configs/shapes/born_again_ensemble.py
_base_ = '../shapes/student.py'

model = dict(
    _delete_=True,
    type='Ensemble',
    members=[dict(config='configs/shapes/student.py', checkpoint=f'work_dirs/shapes/born_again/gen{number}')
             for number in (1, 2, 3)])
