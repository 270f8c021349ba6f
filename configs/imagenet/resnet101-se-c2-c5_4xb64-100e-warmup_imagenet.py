_base_ = 'resnet101_4xb64-100e-warmup_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.SE'), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
