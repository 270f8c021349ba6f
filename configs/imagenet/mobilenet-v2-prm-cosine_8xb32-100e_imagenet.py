_base_ = 'mobilenet-v2-prm_8xb32-100e_imagenet.py'
block = dict(type='prm_mmdet.PRM', groups=8, similarity='cosine')
plugin = dict(cfg=block, at=r'layer[1-7]\.\d+\.linear_conv')
model = dict(backbone=dict(plugins=[plugin]))
