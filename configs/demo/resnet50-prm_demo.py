_base_ = 'resnet50_demo.py'
block = dict(type='prm_mmdet.PRM')
plugin = dict(cfg=block, stages=(False, True, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
