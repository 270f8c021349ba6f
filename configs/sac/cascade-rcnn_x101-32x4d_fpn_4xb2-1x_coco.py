_base_ = 'cascade-rcnn_r50_fpn_4xb2-1x_coco.py'
backbone = dict(
    type='ResNeXt',
    depth=101,
    groups=32,
    base_width=4,
    init_cfg=dict(checkpoint='open-mmlab://resnext101_32x4d'),
)
model = dict(backbone=backbone)
