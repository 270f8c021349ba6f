_base_ = 'resnet101_4xb55-100e_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.LCT'), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
