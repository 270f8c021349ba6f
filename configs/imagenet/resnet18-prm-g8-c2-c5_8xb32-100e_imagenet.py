_base_ = 'resnet18-prm-c2-c5_8xb32-100e_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.PRM', groups=8), at=r'layer[1-4]\.\d+\.bn2')
model = dict(backbone=dict(plugins=[plugin]))
