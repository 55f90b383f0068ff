# The tiny teacher on the shapes' COCO form. A checkpoint of either form scores the same in both.
#
#   hgd-det data shapes data/shapes
#   python tools/train.py configs/shapes/teacher_coco.py
_base_ = ['./_base_/model.py', './_base_/data_coco.py', './_base_/recipe.py']
