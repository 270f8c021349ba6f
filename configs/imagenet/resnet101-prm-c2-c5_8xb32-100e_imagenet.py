_base_ = 'resnet101_8xb32-100e_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.PRM'), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
