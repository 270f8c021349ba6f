_base_ = 'resnet50_4xb64-100e-warmup_imagenet.py'
# SAC is in the last residual block of c2, c3 and c4, after the 3x3 and its ReLU: the
# place that it has in the detectors.
block = dict(type='prm_mmdet.SAC')
plugin = dict(cfg=block, stages=(True, True, True, False), position='after_conv2')
model = dict(backbone=dict(type='prm_mmdet.LastBlockResNet', plugins=[plugin]))
