# The PRM paper trains all models by one recipe, and this config follows it. The
# authors' code differs for mobile networks: 150 epochs, a dropout of 0.2 before the
# linear layer, and for MnasNet a momentum of 0.0003 in batch normalisation.
_base_ = 'resnet50_8xb32-100e_imagenet.py'
model = dict(backbone=dict(_delete_=True, type='prm_mmdet.MnasNet', out_indices=(7,)))
