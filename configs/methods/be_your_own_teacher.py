# Deep layers teach shallow ones (Zhang et al. 2019).
#
#   hgd-det train shapes --method be_your_own_teacher
teacher = None
terms = dict(own=dict(type='BeYourOwnTeacher', alpha=0.1, beta=1e-6, temperature=3.0))
