_base_ = 'none.py'
# With this reduction, SAC gathers as many contexts as in the paper's wider networks.
block = dict(type='prm_mmdet.SAC', reduction=8)
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv2')
model = dict(backbone=dict(plugins=[plugin]))
