_base_ = 'resnet50_8xb32-100e_imagenet.py'
train_dataloader = dict(batch_size=64)
