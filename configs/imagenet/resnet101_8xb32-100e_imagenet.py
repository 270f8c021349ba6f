_base_ = 'resnet50_8xb32-100e_imagenet.py'
model = dict(backbone=dict(depth=101))
