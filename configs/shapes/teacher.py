# The tiny teacher on the built-in shapes: 500 steps, minutes on two CPU cores.
#
#   hgd-det data shapes data/shapes
#   python tools/train.py configs/shapes/teacher.py
_base_ = ['./_base_/model.py', './_base_/data.py', './_base_/recipe.py']
