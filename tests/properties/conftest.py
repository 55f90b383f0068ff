"""Properties hold for whatever hypothesis thinks of: the same examples in every run, a few of each, or with
HGD_DET_EXAMPLES=1000 as many new ones.
"""
import os

try:
    from hypothesis import settings
except ImportError:  # an environment of mmdet's own, say
    collect_ignore_glob = ['test_*.py']
else:
    MORE = os.environ.get('HGD_DET_EXAMPLES')
    settings.register_profile('hgd_det', derandomize=not MORE, max_examples=int(MORE or 40), deadline=None,
                              database=None, print_blob=True)
    settings.load_profile('hgd_det')
