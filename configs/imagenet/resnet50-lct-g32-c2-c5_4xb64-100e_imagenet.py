_base_ = 'resnet50_4xb64-100e_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.LCT', groups=32), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
