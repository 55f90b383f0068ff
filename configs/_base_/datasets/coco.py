"""COCO 2017, with SSD's augmentation."""

_base_ = './ssd300_pipelines.py'

data_root = 'data/coco/'

train_dataloader = dict(dataset=dict(dataset=dict(
    type='CocoFolder',
    data_root=data_root,
    ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'))))
val_dataloader = dict(dataset=dict(
    type='CocoFolder',
    data_root=data_root,
    ann_file='annotations/instances_val2017.json',
    data_prefix=dict(img='val2017/')))
test_dataloader = val_dataloader

val_evaluator = dict(
    type='COCOmAP',
    ann_file=data_root + 'annotations/instances_val2017.json',
    metric='bbox')
test_evaluator = val_evaluator
