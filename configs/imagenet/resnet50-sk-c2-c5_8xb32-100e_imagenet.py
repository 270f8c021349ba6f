_base_ = 'resnet50_8xb32-100e_imagenet.py'
model = dict(backbone=dict(type='prm_mmdet.SKResNet'))
