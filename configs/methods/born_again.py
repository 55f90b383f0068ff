# Born-Again networks (Furlanello et al. 2018): three generations of the student, the first alone, each
# further one with the class scores of the one before. Their ensemble: configs/shapes/born_again_ensemble.py.
#
#   hgd-det train shapes --method born_again
generations = 3
teacher = 'student'
terms = dict(kd=dict(type='LogitKD', temperature=1.0, weight=1.0))
