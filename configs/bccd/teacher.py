# A quarter-width SSD-VGG16 on photographs of blood cells: about 20 minutes on one CPU core. After 500
# iterations it is at 61 mAP and has little to teach, after 2000 at 83.
#
#   python tools/train.py configs/bccd/teacher.py
_base_ = ['../shapes/_base_/model.py', './_base_/data.py', '../shapes/_base_/recipe.py']

model = dict(bbox_head=dict(
    num_classes=3,
    anchor_generator=dict(
        strides=[8, 16, 32, 53],  # maps of 20, 10, 5 and 3
        min_sizes=[12, 26, 42, 60],
        max_sizes=[22, 38, 56, 85])))

train_cfg = dict(max_iters=2000, val_interval=500)
