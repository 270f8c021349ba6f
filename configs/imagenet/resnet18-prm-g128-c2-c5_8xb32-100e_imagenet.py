# c2 has 64 channels, which allow at most 64 groups. The paper does not say what it does
# with 128 groups there.
_base_ = 'resnet18-prm-c2-c5_8xb32-100e_imagenet.py'
narrow = dict(cfg=dict(type='prm_mmdet.PRM', groups=64), at=r'layer1\.\d+\.bn2')
wide = dict(cfg=dict(type='prm_mmdet.PRM', groups=128), at=r'layer[2-4]\.\d+\.bn2')
model = dict(backbone=dict(plugins=[narrow, wide]))
