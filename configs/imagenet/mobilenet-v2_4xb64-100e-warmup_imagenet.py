_base_ = 'resnet50_4xb64-100e-warmup_imagenet.py'
model = dict(backbone=dict(_delete_=True, type='mmdet.MobileNetV2', out_indices=(7,)))
