_base_ = 'none.py'
block = dict(type='NonLocal2d')
plugin = dict(cfg=block, stages=(False, True, True), position='after_conv3')
model = dict(backbone=dict(plugins=[plugin]))
