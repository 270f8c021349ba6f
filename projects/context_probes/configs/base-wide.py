# A base network with wider convolutions. They add as many parameters as the largest
# block, NonLocal2d.
_base_ = 'base.py'
model = dict(backbone=dict(base_channels=26), neck=dict(in_channels=[104, 208, 416]))
