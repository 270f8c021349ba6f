_base_ = 'resnet50_4xb64-100e_imagenet.py'
block = dict(type='prm_mmdet.LCT', normalization=False)
plugin = dict(cfg=block, position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
