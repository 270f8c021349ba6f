_base_ = 'resnet50_4xb64-100e-warmup_imagenet.py'
model = dict(backbone=dict(depth=18))
