"""The registry of terms; a new one of your own registers here too (see docs/your_term.md)."""
from mmengine.registry import Registry

TERMS = Registry('term', locations=['hgd_det.distill.terms'])
