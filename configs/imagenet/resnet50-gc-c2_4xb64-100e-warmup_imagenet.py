_base_ = 'resnet50_4xb64-100e-warmup_imagenet.py'
block = dict(type='prm_mmdet.GC', ratio=1.0 / 16)
plugin = dict(cfg=block, stages=(True, False, False, False), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
