"""Gates, attention maps and query points that a block computes from its input.

The operators do not keep these quantities, so they are computed again in float32. For
PRM, LCT, SAC and SGE, the equations of :mod:`prm_mmdet.ops.reference` compute them. For
other blocks, such as SE and CBAM, the block's own methods and layers compute them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from mmcv.cnn.bricks import ContextBlock
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from ..ops import reference
from ..ops.common import without_autocast
from ..plugins import BAM, CBAM, GE, LCT, PRM, SAC, SE, SGE, SK, DoubleAttention
from ..plugins.sac import is_plain


@dataclass
class Quantities:
    """What a block computes for a batch. If the block does not compute a quantity, the
    attribute is None or empty."""

    # Gates by name, (B, ...), values from 0 to 1. CBAM has the gates 'channels' and
    # 'positions', and SK the gate 'dense'. If other blocks have a gate, its name is ''.
    gates: dict[str, Tensor] = field(default_factory=dict)
    # Gate of each channel, (B, C), if all positions have the same gate.
    channel_gate: Tensor | None = None
    # Row and column of PRM's query point in each of g groups, (B, g, 2).
    query: Tensor | None = None
    # PRM's position encoding D, averaged over groups, (B, H, W).
    encoding: Tensor | None = None
    attention: Tensor | None = None  # attention maps, (B, K, H, W), each with sum 1
    # Weights of the K contexts at each of N = H * W positions, before softmax,
    # (B, K, N).
    weights: Tensor | None = None


def quantities(block: nn.Module, x: Tensor) -> Quantities:
    """Compute a block's :class:`Quantities`, without gradients.

    The block and its running statistics do not change. In training, synchronised batch
    normalisation uses the statistics of this rank's batch. If this batch has only one
    value for each channel, batch normalisation uses the running statistics.

    Args:
        block: A block, for which :func:`kind` is not None.
        x: Its input, (B, C, H, W).
    """
    with torch.no_grad(), without_autocast(x), _local_statistics(block):
        return _RULES[kind(block)][1](block, x.float())


def kind(module: nn.Module) -> str | None:
    """'PRM', 'SAC', 'GC', ..., or None if the module is not a block."""
    for name, (types, _) in _RULES.items():
        if isinstance(module, types):
            return name
    return None


def adds(block: nn.Module) -> bool:
    """Whether a block adds to its input. Other blocks multiply the input by a gate."""
    if isinstance(block, ContextBlock):
        return block.channel_add_conv is not None
    return isinstance(block, (SAC, DoubleAttention))


def contribution_rate(block: PRM) -> float:
    """How much the query point counts in a PRM's similarity, from 0 to 1.

    A group has the rate ``|alpha| / (|alpha| + |beta|)``. alpha is the weight of the
    query point, and beta the weight of the mean over positions. If alpha and beta are
    zero, the rate is 0. The result is the mean over groups.

    Source: Ma and Fu, IJCAI 2020, Section 4.2, Figure 3.
    """
    alpha, beta = block.alpha.detach().abs(), block.beta.detach().abs()
    return (alpha / (alpha + beta).clamp(min=1e-12)).mean().item()


def check(name: str, block: nn.Module) -> None:
    """Raise ValueError if a convolution of SAC has hooks, an adapter or no bias.

    The quantities of SAC are computed from the convolutions' weights and biases alone.
    """
    if isinstance(block, SAC):
        for layer in (block.attention, block.customization):
            if layer is not None and not is_plain(layer):
                raise ValueError(
                    f'{name}: a convolution has hooks, an adapter or no bias, so its '
                    'output does not follow from its weights. Remove the hooks, or '
                    'merge the adapter into the weights'
                )


def _cast(block, x):
    """The input, converted to the type of the block's parameters. If the block has no
    parameters, such as GE, the input keeps its type."""
    return x.to(next(block.parameters(), x).dtype)


def _floats(block, *names):
    """Parameters of a block in float32. None for a parameter that an option removed."""
    found = (getattr(block, name) for name in names)
    return [p if p is None else p.float() for p in found]


def _prm(block, x):
    parameters = _floats(block, 'alpha', 'beta', 'weight', 'bias', 'theta', 'sigma')
    query, encoding, gate = reference.prm_steps(
        x, *parameters, block.similarity, block.normalization
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
    parameters = _floats(block, 'weight', 'bias')
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
    x = _cast(block, x)
    attention = block.gather(x).float().flatten(2).softmax(2)
    weights = block.distribute(x).float().flatten(2)
    return Quantities(attention=attention.unflatten(2, x.shape[2:]), weights=weights)


def _gated(block, x):
    gate = block.gate(_cast(block, x)).float()
    channel_gate = gate.flatten(1) if gate.shape[2:] == (1, 1) else None
    return Quantities(gates={'': gate}, channel_gate=channel_gate)


def _sge(block, x):
    parameters = _floats(block, 'alpha', 'beta', 'weight', 'bias')
    return Quantities(gates={'': reference.prm_steps(x, *parameters).gate})


def _sk(block, x):
    x = _cast(block, x)
    shares = block.shares(block.dense(x), block.grouped(x)).float()
    # SK has a dense and a grouped branch. The two gates sum to 1, so one is enough.
    return Quantities(gates={'dense': shares[:, 0]})


def _cbam(block, x):
    x = _cast(block, x)
    channel = block.channel_gate(x)
    position = block.position_gate(x * channel).float()
    channel = channel.float()
    gates = {'channels': channel, 'positions': position}
    return Quantities(gates=gates, channel_gate=channel.flatten(1))


def _context(block, x):
    x, found = _cast(block, x), Quantities()
    if block.pooling_type == 'att':
        attention = block.conv_mask(x).float().flatten(2).softmax(2)
        found.attention = attention.unflatten(2, x.shape[2:])
    if block.channel_mul_conv is not None:
        gate = torch.sigmoid(block.channel_mul_conv(block.spatial_pool(x))).float()
        found.gates, found.channel_gate = {'': gate}, gate.flatten(1)
    return found


_RULES: dict[str | None, tuple[type[nn.Module], Callable[..., Quantities]]] = {
    'PRM': (PRM, _prm),
    'LCT': (LCT, _lct),
    'SAC': (SAC, _sac),
    'SE': (SE, _gated),
    'GE': (GE, _gated),
    'SGE': (SGE, _sge),
    'SK': (SK, _sk),
    'CBAM': (CBAM, _cbam),
    'BAM': (BAM, _gated),
    'GC': (ContextBlock, _context),
    'DA': (DoubleAttention, _double_attention),
}


@contextlib.contextmanager
def _local_statistics(block):
    """In a ``with`` block, batch normalisation uses only the batch of this rank.

    Often, only one rank records its blocks. Synchronised batch normalisation would then
    wait for the other ranks. Running statistics do not change.
    """
    # Find norm layers by an attribute and not by a class, because MMCV's SyncBatchNorm
    # is derived from another class.
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
    # In synchronised training, a rank's batch may have only one value for each channel.
    # One value has no variance, so the running statistics are used.
    one = x.numel() == x.shape[1]
    running = (norm.running_mean, norm.running_var) if one else (None, None)
    return batch_norm(
        x, *running, norm.weight, norm.bias, training=not one, eps=norm.eps
    )
