"""What a block computes on the way to its output, from its input.

The operators keep nothing of it, so it is computed again, in float32: for PRM, LCT and
SAC by the equations of :mod:`prm_mmdet.ops.reference`, for the compared blocks by their
own methods.
"""

import contextlib
from dataclasses import dataclass, field
from functools import partial
from typing import Optional

import torch
from mmcv.cnn.bricks import ContextBlock
from torch import Tensor
from torch.nn.functional import batch_norm

from ..ops import reference
from ..ops.common import without_autocast
from ..plugins import BAM, CBAM, GE, LCT, PRM, SAC, SE, SGE, SK, DoubleAttention
from ..plugins.sac import is_plain


@dataclass
class Quantities:
    """Of a batch; None or empty what a block does not have."""

    gates: dict = field(default_factory=dict)  # names to (B, ...), each in (0, 1)
    channel_gate: Optional[Tensor] = None  # (B, C), of those one for each channel
    query: Optional[Tensor] = None  # (B, g, 2), row and column of PRM's query points
    encoding: Optional[Tensor] = None  # (B, H, W), mean of PRM's D over the groups
    attention: Optional[Tensor] = None  # (B, K, H, W), sums over positions are 1
    weights: Optional[Tensor] = None  # (B, K, N), of the contexts, before any softmax


def quantities(block, x):
    """Compute a block's :class:`Quantities`, without gradients. Nothing of the block
    changes, its running statistics included. Synchronised batch normalisation in
    training takes the statistics of this batch alone (the running ones, if they are of
    a single value a channel).

    Args:
        block (nn.Module): One of those that :func:`kind` names.
        x (Tensor): Its input, (B, C, H, W).
    """
    with torch.no_grad(), without_autocast(x), _local_statistics(block):
        return _RULES[kind(block)][1](block, x.float())


def kind(module):
    """'PRM', 'SAC', 'GC', ..., or None for a module that is no block."""
    for name, (types, _) in _RULES.items():
        if isinstance(module, types):
            return name
    return None


def adds(block):
    """Whether a block adds to its input, rather than multiplies it by a gate."""
    if isinstance(block, ContextBlock):
        return block.channel_add_conv is not None
    return isinstance(block, (SAC, DoubleAttention))


def contribution_rate(block):
    """Share of the query point in the similarity of a PRM, mean over the groups of
    |alpha| / (|alpha| + |beta|): between 0 (the mean alone) and 1. A group in which
    both are zero counts as 0. (Ma and Fu, IJCAI 2020, Section 4.2 and Figure 3.)"""
    alpha, beta = block.alpha.detach().abs(), block.beta.detach().abs()
    return (alpha / (alpha + beta).clamp(min=1e-12)).mean().item()


def check(name, block):
    """Raise ValueError if a block cannot be looked into."""
    if isinstance(block, SAC) and block.attention is not None:
        for layer in (block.attention, block.customization):
            if not is_plain(layer):
                raise ValueError(
                    f'{name}: its convolutions have hooks, an adapter or no bias, so '
                    'that their weights do not tell what they compute; take those out, '
                    'or merge them into the weights'
                )


def _prm(block, x):
    parameters = [
        p if p is None else p.float()
        for p in (*(block.alpha, block.beta, block.weight, block.bias), block.theta)
    ]
    sigma = block.sigma if block.sigma is None else block.sigma.float()
    query, encoding, gate = reference.prm_steps(
        x, *parameters, sigma, block.similarity, block.normalization
    )
    width = x.shape[3]
    if encoding is not None:
        encoding = encoding.mean(1).unflatten(1, x.shape[2:])
    return Quantities(
        gates={'': gate},
        query=torch.stack([query // width, query % width], 2),
        encoding=encoding,
    )


def _lct(block, x):
    parameters = [p if p is None else p.float() for p in (block.weight, block.bias)]
    gate = reference.lct_gate(
        x, *parameters, block.groups, block.eps, block.normalization
    )
    return Quantities(gates={'': gate}, channel_gate=gate)


def _sac(block, x):
    if block.attention is None:
        return Quantities()
    parameters = []
    for layer in (block.attention, block.customization):
        parameters += [layer.weight.float().flatten(1), layer.bias.float()]
    attention, weights = reference.sac_maps(x, *parameters)
    return Quantities(attention=attention.unflatten(2, x.shape[2:]), weights=weights)


def _double_attention(block, x):
    x = x.to(block.gather.weight.dtype)
    attention = block.gather(x).float().flatten(2).softmax(2)
    weights = block.distribute(x).float().flatten(2)
    return Quantities(attention=attention.unflatten(2, x.shape[2:]), weights=weights)


def _se(block, x):
    gate = block.gate(x.to(block.squeeze.weight.dtype)).float()
    return Quantities(gates={'': gate}, channel_gate=gate.flatten(1))


def _ge(block, x):
    gate = block.gate(x)
    return Quantities(gates={'': gate}, channel_gate=gate.flatten(1))


def _sge(block, x):
    names = ('alpha', 'beta', 'weight', 'bias')
    parameters = [getattr(block, name).float() for name in names]
    return Quantities(gates={'': reference.prm_steps(x, *parameters).gate})


def _sk(block, x):
    x = x.to(block.excite.weight.dtype)
    shares = block.shares(block.dense(x), block.grouped(x)).float()
    return Quantities(gates={'dense': shares[:, 0]})  # the other is the rest of 1


def _cbam(block, x):
    x = x.to(block.squeeze.weight.dtype)
    channel = block.channel_gate(x)
    position = block.position_gate(x * channel).float()
    channel = channel.float()
    gates = {'channels': channel, 'positions': position}
    return Quantities(gates=gates, channel_gate=channel.flatten(1))


def _bam(block, x):
    gate = block.gate(x.to(block.channel[0].weight.dtype)).float()
    return Quantities(gates={'': gate})


def _context(block, x):
    x = x.to(next(block.parameters()).dtype)
    found = Quantities()
    if block.pooling_type == 'att':
        attention = block.conv_mask(x).float().flatten(2).softmax(2)
        found.attention = attention.unflatten(2, x.shape[2:])
    if block.channel_mul_conv is not None:
        gate = torch.sigmoid(block.channel_mul_conv(block.spatial_pool(x))).float()
        found.gates, found.channel_gate = {'': gate}, gate.flatten(1)
    return found


_RULES = {
    'PRM': (PRM, _prm),
    'LCT': (LCT, _lct),
    'SAC': (SAC, _sac),
    'SE': (SE, _se),
    'GE': (GE, _ge),
    'SGE': (SGE, _sge),
    'SK': (SK, _sk),
    'CBAM': (CBAM, _cbam),
    'BAM': (BAM, _bam),
    'GC': (ContextBlock, _context),
    'DA': (DoubleAttention, _double_attention),
}


@contextlib.contextmanager
def _local_statistics(block):
    """Let batch normalisation in training take this batch's statistics meanwhile,
    without updating the running ones, and without exchanging them with the other
    ranks, which do not compute this."""
    # Found by what it has: MMCV's SyncBatchNorm shares no base class with PyTorch's.
    norms = [m for m in block.modules() if hasattr(m, 'running_mean') and m.training]
    before = [vars(norm).get('forward') for norm in norms]
    try:
        for norm in norms:
            norm.forward = partial(_normalise, norm)
        yield
    finally:
        for norm, forward in zip(norms, before):
            del norm.forward
            if forward is not None:
                norm.forward = forward


def _normalise(norm, x):
    one = x.numel() == x.shape[1]  # enough for a rank where the ranks are synchronised
    running = (norm.running_mean, norm.running_var) if one else (None, None)
    return batch_norm(
        x, *running, norm.weight, norm.bias, training=not one, eps=norm.eps
    )
