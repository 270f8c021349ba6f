# ImageNet as the LCT and SAC papers augment it: "a 224 x 224 crop is randomly sampled
# from a 256 x 256 image or its horizontal flip using the scale and aspect ratio
# augmentation". The image is resized to 256 x 256 first, which distorts it.
_base_ = 'imagenet.py'
train_pipeline = [
    dict(type='prm_mmdet.LoadRandomResizedCrop', size=224, image_size=256),
    dict(type='RandomFlip', prob=0.5),
    dict(type='prm_mmdet.PackImage'),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
