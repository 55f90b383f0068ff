"""Images of 300 px: SSD's augmentation to train (SSD, section 2.2), resizing alone to test; a data set adds
where it is."""

input_size = 300

# Under one seed the same samples as `mmdet_train_pipeline`, at a fraction of the time. With reduce=True JPEGs
# are decoded no finer than needed, which pays for large photographs and changes their pixels a little.
train_pipeline = [
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='SSDAugment',
        scale=(input_size, input_size),
        mean=[123.675, 116.28, 103.53],
        ratio_range=(1, 4),
        min_ious=(0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size=0.3,
        flip_prob=0.5,
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
        reduce=False),
    dict(type='PackDetInputs'),
]

# mmdet's own steps. A config takes them with
# train_dataloader = dict(dataset=dict(dataset=dict(pipeline={{_base_.mmdet_train_pipeline}})))
mmdet_train_pipeline = [
    dict(type='RobustLoadImage'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Expand', mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 4)),
    dict(type='MinIoURandomCrop', min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
    dict(type='Resize', scale=(input_size, input_size), keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='PhotoMetricDistortion',
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='RobustLoadImage', broken='blank'),
    dict(type='Resize', scale=(input_size, input_size), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),  # after Resize: boxes of the original image
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=None,
    dataset=dict(
        type='RepeatDataset',
        times=5,
        dataset=dict(filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=train_pipeline)))
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
