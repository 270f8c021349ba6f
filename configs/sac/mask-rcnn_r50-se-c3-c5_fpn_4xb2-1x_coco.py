_base_ = 'mask-rcnn_r50_fpn_4xb2-1x_coco.py'
block = dict(type='prm_mmdet.SE')
plugin = dict(cfg=block, stages=(False, True, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
