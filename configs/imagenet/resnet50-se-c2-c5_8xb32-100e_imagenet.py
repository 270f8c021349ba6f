_base_ = 'resnet50_8xb32-100e_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.SE'), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
