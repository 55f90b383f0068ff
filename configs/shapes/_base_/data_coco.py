"""The built-in shapes in COCO form: the same pictures, boxes and augmentation."""

_base_ = './data.py'

pictures = dict(_delete_=True, img='VOC2007/JPEGImages/')

train_dataloader = dict(
    dataset=dict(
        type='CocoFolder',
        ann_file='annotations/instances_train.json',
        data_prefix=pictures))
val_dataloader = dict(
    dataset=dict(
        type='CocoFolder',
        ann_file='annotations/instances_test.json',
        data_prefix=pictures))
test_dataloader = val_dataloader

# VOC's figures too, which equal those of the VOC form
val_evaluator = [
    dict(
        type='COCOmAP',
        ann_file='data/shapes/annotations/instances_test.json',
        metric='bbox'),
    dict(type='VOCmAP', mode=['area', '11points']),
]
test_evaluator = val_evaluator
