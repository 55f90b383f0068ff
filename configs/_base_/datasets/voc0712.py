"""VOC: trains on 2007+2012 trainval, tests on 2007 test; SSD's augmentation."""

_base_ = './ssd300_pipelines.py'

data_root = 'data/VOCdevkit/'
metainfo = dict(
    classes=('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
             'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa',
             'train', 'tvmonitor'))

train_dataloader = dict(dataset=dict(dataset=dict(
    type='VOCFolders',
    metainfo=metainfo,
    data_root=data_root,
    ann_file=[
        'VOC2007/ImageSets/Main/trainval.txt',
        'VOC2012/ImageSets/Main/trainval.txt',
    ])))
val_dataloader = dict(dataset=dict(
    type='VOCFolder',
    metainfo=metainfo,
    data_root=data_root,
    ann_file='VOC2007/ImageSets/Main/test.txt',
    data_prefix=dict(sub_data_root='VOC2007/')))
test_dataloader = val_dataloader

val_evaluator = dict(type='VOCmAP', mode=['11points', 'area'])
test_evaluator = val_evaluator
