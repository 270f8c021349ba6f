_base_ = 'cascade-rcnn_r50_fpn_2x_coco.py'
block = dict(type='ContextBlock', ratio=1.0 / 16)
plugin = dict(cfg=block, stages=(False, True, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
