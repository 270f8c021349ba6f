_base_ = 'mask-rcnn_x101-32x4d_fpn_4xb2-1x_coco.py'
block = dict(type='ContextBlock', ratio=1.0 / 16)
plugin = dict(cfg=block, stages=(False, True, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
