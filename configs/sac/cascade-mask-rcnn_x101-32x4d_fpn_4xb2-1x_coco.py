_base_ = [
    'cascade-mask-rcnn_r50_fpn_4xb2-1x_coco.py',
    '../_base_/backbones/resnext101_32x4d.py',
]
model = dict(backbone=_base_.resnext101_32x4d)
