# The network without a block. The networks with blocks inherit these settings. Training
# starts from the weights of a base network, which has no block either.
_base_ = 'base.py'
load_from = '{{$PROBE_BASE:work_dirs/base/epoch_6.pth}}'
# c1 and c2 are frozen, as in a pretrained backbone. ``init_cfg=[]`` keeps MMDetection
# from initialising the backbone, so blocks keep their own initial values.
model = dict(backbone=dict(frozen_stages=1, init_cfg=[]))
epochs = 6
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = _base_.param_scheduler
param_scheduler[1].T_max = epochs
