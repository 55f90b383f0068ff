"""BCCD, 364 photographs of blood cells (https://github.com/Shenggan/BCCD_Dataset), at 160 px.

Put its Annotations, ImageSets and JPEGImages into data/bccd/VOC2007.
"""

_base_ = '../../shapes/_base_/data.py'

input_size = 160
data_root = 'data/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))

train_pipeline = [
    dict(type='RobustLoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(input_size, input_size), keep_ratio=False),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25],
         direction=['horizontal', 'vertical', 'diagonal']),  # a smear has no upside
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='RobustLoadImage', broken='blank'),
    dict(type='Resize', scale=(input_size, input_size), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=8,
    dataset=dict(metainfo=metainfo, data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=12,
    dataset=dict(metainfo=metainfo, data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
