"""Evaluate a checkpoint: MMDetection's test.py and its flags, a check of the data
before the start, and CPU ranks under torchrun."""

from prm_mmdet.launch import run_tool

if __name__ == '__main__':
    run_tool('test.py')
