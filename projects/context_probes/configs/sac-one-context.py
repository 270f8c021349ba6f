_base_ = 'none.py'
# The reduction exceeds the number of channels, so SAC gathers only one context.
block = dict(type='prm_mmdet.SAC', reduction=1000)
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv2')
model = dict(backbone=dict(plugins=[plugin]))
