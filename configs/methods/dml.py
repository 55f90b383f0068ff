# Two students that train together and teach each other (Deep Mutual Learning, Zhang et al. 2018).
# A larger peer: --cfg-options model.terms.dml.peer=configs/shapes/teacher.py
#
#   hgd-det train shapes --method dml
teacher = None
terms = dict(dml=dict(type='DML', temperature=1.0, weight=1.0))
