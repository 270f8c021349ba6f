_base_ = 'resnet50_4xb64-100e-warmup_imagenet.py'
block = dict(type='prm_mmdet.SAC')
plugin = dict(cfg=block, stages=(False, True, False, False), position='after_conv2')
model = dict(backbone=dict(plugins=[plugin]))
