"""Data: the built-in shapes set, preparing VOC and COCO, checking, and datasets that survive dirt.

Importing this package costs nothing; `datasets` is the only module here that needs mmdet.
"""
