_base_ = 'none.py'
block = dict(type='prm_mmdet.SAC', reduction=1000)  # one context (K = 1)
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv2')
model = dict(backbone=dict(plugins=[plugin]))
