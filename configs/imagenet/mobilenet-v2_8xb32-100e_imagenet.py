# The PRM paper trains all models by one recipe, and this config follows it. The
# authors' code differs for mobile networks: 150 epochs, and a dropout of 0.2 before the
# linear layer.
_base_ = 'resnet50_8xb32-100e_imagenet.py'
model = dict(backbone=dict(_delete_=True, type='mmdet.MobileNetV2', out_indices=(7,)))
