_base_ = 'mmdet::_base_/default_runtime.py'
# The import registers the blocks' unscoped names and lets torch >= 2.6 read MMEngine's
# checkpoints, in MMDetection's own scripts too.
custom_imports = dict(imports=['prm_mmdet'], allow_failed_imports=False)
