_base_ = 'resnet50_4xb64-100e_imagenet.py'
block = dict(type='prm_mmdet.LCT', init_weight=1, init_bias=0)
plugin = dict(cfg=block, position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
