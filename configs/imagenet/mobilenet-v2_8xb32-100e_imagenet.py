_base_ = 'resnet50_8xb32-100e_imagenet.py'
model = dict(backbone=dict(_delete_=True, type='mmdet.MobileNetV2', out_indices=(7,)))
