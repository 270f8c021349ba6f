"""Position-Aware Recalibration Module.

Source: X. Ma and S. Fu, "Position-Aware Recalibration Module: Learning From Feature
Semantics and Feature Position", IJCAI 2020.

Choices where the paper is silent, or differs from its published code:

- Eq. 5: ``theta`` and ``sigma`` (the paper's d) are shared by all groups. The position
  encoding D is the mean of two Gaussians, one over rows and one over columns, as in the
  published code. The sign of ``sigma`` has no effect. Absolute values below 1e-5 are
  replaced by 1e-5, because Eq. 5 divides by ``sigma``.
- Eq. 6: For N positions, the standard deviation divides by N, as in the paper. In the
  published code, it divides by N - 1.
- Eq. 8: ``weight`` and ``bias`` are applied even if ``normalization`` is False.
- Initial values: ``alpha`` and ``weight`` are 0, and ``beta``, ``bias`` and ``sigma``
  are 1. ``theta`` is random, uniform between 0 and 1.
"""

from __future__ import annotations

import torch
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor, nn

from .. import ops
from ..ops.prm_operator import SIMILARITIES
from ..registry import MODELS
from .checks import check_choice, check_groups, check_input


@MMDET_MODELS.register_module()
@MODELS.register_module()
class PRM(nn.Module):
    """Multiply each position by a gate between 0 and 1. The gate depends on two
    similarities of the position: to the most salient position (the query point), and to
    the mean over positions. The similarity to the query point is multiplied by a
    function of the distance to this point. The channels of a group share the gate.

    Args:
        in_channels (int): Channels C of the input.
        groups (int): Number of groups g; must divide ``in_channels``. Default: 64.
        similarity (str): 'dot' (Eq. 4), 'l1' (Eq. 3) or 'cosine' (Eq. 2).
            Default: 'dot'.
        position_encoding (bool): Whether the similarity to the query point is
            multiplied by a function of the distance to this point (Eq. 5). If False,
            the block has no ``theta`` and no ``sigma``. Default: True.
        normalization (bool): Whether the similarity is normalised over positions
            (Eqs. 6 and 7). Default: True.

    Parameters: ``alpha``, ``beta``, ``weight``, ``bias``, (g,) each. All groups share
    ``theta`` (2,) and the scalar ``sigma``. These are 4g + 3 numbers. A fresh block
    multiplies its input by sigmoid(1) = 0.73. The names of the parameters are keys of
    every saved checkpoint. If a name changes, older checkpoints do not load.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    # The block's default name in a network, which is part of the keys in checkpoints.
    _abbr_ = 'prm'

    def __init__(
        self,
        in_channels: int,
        groups: int = 64,
        similarity: str = 'dot',
        position_encoding: bool = True,
        normalization: bool = True,
    ):
        super().__init__()
        check_groups('PRM', in_channels, groups)
        check_choice('PRM', 'similarity', similarity, SIMILARITIES)
        self.in_channels = in_channels
        self.groups = groups
        self.similarity = similarity
        self.normalization = normalization
        self.alpha = nn.Parameter(torch.zeros(groups))
        self.beta = nn.Parameter(torch.ones(groups))
        self.weight = nn.Parameter(torch.zeros(groups))
        self.bias = nn.Parameter(torch.ones(groups))
        self.theta = nn.Parameter(torch.rand(2)) if position_encoding else None
        self.sigma = nn.Parameter(torch.ones(())) if position_encoding else None

    def forward(self, x: Tensor) -> Tensor:
        check_input('PRM', x, self.in_channels)
        return ops.prm(
            x,
            self.alpha,
            self.beta,
            self.weight,
            self.bias,
            self.theta,
            self.sigma,
            similarity=self.similarity,
            normalization=self.normalization,
        )

    def constant_gate(self) -> Tensor | None:
        """The gate of each channel, of shape (C,), while ``weight`` is zero everywhere.
        Otherwise, the gate depends on the input, and the result is None."""
        if self.weight.any():
            return None
        gate = self.bias.detach().sigmoid()
        return gate.repeat_interleave(self.in_channels // self.groups)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, groups={self.groups}, '
            f'similarity={self.similarity!r}, '
            f'position_encoding={self.theta is not None}, '
            f'normalization={self.normalization}'
        )
