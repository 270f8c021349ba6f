# The network in none-wide.py starts from the weights of this base network. The
# convolutions are wider than in base.py. They add as many parameters as NonLocal2d, the
# largest block.
_base_ = 'base.py'
model = dict(backbone=dict(base_channels=26), neck=dict(in_channels=[104, 208, 416]))
