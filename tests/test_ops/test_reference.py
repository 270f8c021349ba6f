"""The reference against values worked out by hand and against plain NumPy loops."""

import math

import numpy as np
import pytest
import torch

from prm_mmdet.ops import reference


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_prm_by_hand():
    # One sample, one group, one channel, two positions in a row: 1 and 3.
    # Query: position 1, q = 3; mean z = 2. Densities: 0.3989423 at distance 0 and
    # 0.2419707 at distance 1, so D = (0.3989423 + 0.2419707) / 2 = 0.3204565 at
    # position 0 and 0.3989423 at position 1.
    # S = (1 * 3 * 0.3204565 + 0.5 * 1 * 2, 3 * 3 * 0.3989423 + 0.5 * 3 * 2)
    #   = (1.9613695, 6.5904807), mean 4.2759251, deviation 2.3145556.
    # S normalised = -+ 2.3145556 / 2.3145656 = -+ 0.9999957.
    # Gates: sigmoid(2 * -0.9999957 + 0.1) = 0.1301096 and 0.8909024.
    y = reference.prm(
        tensor([[[[1.0, 3.0]]]]),
        *(tensor([v]) for v in (1.0, 0.5, 2.0, 0.1)),
        tensor([1.0, 1.0]),
        tensor(1.0),
    )
    assert y.flatten().tolist() == pytest.approx([0.1301096, 3 * 0.8909024], abs=1e-6)


def test_lct_by_hand():
    # Two groups of two channels, means (1, 3) and (0, 4): normalised -+ 1 / 1.000005
    # and -+ 2 / 2.0000025. Gate of channel 3: sigmoid(0.5 * 0.99999875 - 1).
    x = tensor([[[[1.0, 1.0]], [[2.0, 4.0]], [[-1.0, 1.0]], [[4.0, 4.0]]]])
    weight, bias = tensor([1.0, 1.0, 2.0, 0.5]), tensor([0.0, 1.0, 0.0, -1.0])
    y = reference.lct(x, weight, bias, groups=2)
    gates = [0.2689424, 0.8807965, 0.1192032, 0.3775405]
    expected = (x[0, :, 0] * tensor(gates)[:, None]).flatten().tolist()
    assert y.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_sac_by_hand():
    # K = 1 with equal attention: mu = mean of the positions = (2, 1). Weights: first
    # channel plus 1 = (2, 4). Y = ((4, 8), (2, 4)); rho is the identity plus (0.5, 0).
    y = reference.sac(
        tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]]),
        *(tensor([[0.0, 0.0]]), tensor([0.0])),
        *(tensor([[1.0, 0.0]]), tensor([1.0])),
        *(torch.eye(2, dtype=torch.float64), tensor([0.5, 0.0])),
    )
    assert y.flatten().tolist() == pytest.approx([5.5, 11.5, 4.0, 4.0], abs=1e-12)


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def loop_similarity(a, b, kind):
    if kind == 'l1':
        return -sum(abs(p - r) for p, r in zip(a, b))
    dot = sum(p * r for p, r in zip(a, b))
    if kind == 'dot':
        return dot
    lengths = math.sqrt(sum(p * p for p in a)) * math.sqrt(sum(r * r for r in b))
    return dot / max(lengths, 1e-8)


def loop_prm(x, alpha, beta, weight, bias, theta, sigma, similarity, normalization):
    b, c, h, w = x.shape
    k = c // len(alpha)
    y = np.empty_like(x)
    positions = [(r, s) for r in range(h) for s in range(w)]
    for m in range(b):
        for n in range(len(alpha)):
            slab = x[m, n * k : (n + 1) * k]
            best = positions[0]
            for p in positions:
                if slab[:, p[0], p[1]].mean() > slab[:, best[0], best[1]].mean():
                    best = p
            q = slab[:, best[0], best[1]]
            z = [slab[i].mean() for i in range(k)]
            scores = []
            for p in positions:
                d = 1.0
                if theta is not None:
                    s = max(abs(sigma), 1e-5)
                    d = (
                        sum(
                            math.exp(-0.5 * (theta[a] * abs(p[a] - best[a]) / s) ** 2)
                            / (s * math.sqrt(2 * math.pi))
                            for a in (0, 1)
                        )
                        / 2
                    )
                v = slab[:, p[0], p[1]]
                scores.append(
                    alpha[n] * loop_similarity(v, q, similarity) * d
                    + beta[n] * loop_similarity(v, z, similarity)
                )
            if normalization:
                mean = sum(scores) / len(scores)
                variance = sum((s - mean) ** 2 for s in scores) / len(scores)
                scores = [(s - mean) / (math.sqrt(variance) + 1e-5) for s in scores]
            for p, s in zip(positions, scores):
                gate = sigmoid(weight[n] * s + bias[n])
                y[m, n * k : (n + 1) * k, p[0], p[1]] = slab[:, p[0], p[1]] * gate
    return y


@pytest.mark.parametrize('similarity', ['dot', 'l1', 'cosine'])
@pytest.mark.parametrize('encoding', [True, False])
@pytest.mark.parametrize('normalization', [True, False])
def test_prm_loops(similarity, encoding, normalization):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 6, 4, 3))
    x[0, :2] = x[0, :2].round()  # ties between positions
    x[1, 2:4, 1, 1] = 0
    parameters = [*rng.normal(size=(4, 3))]
    theta, sigma = (rng.normal(size=2), -0.7) if encoding else (None, None)
    expected = loop_prm(x, *parameters, theta, sigma, similarity, normalization)
    y = reference.prm(
        torch.from_numpy(x),
        *map(torch.from_numpy, parameters),
        None if theta is None else torch.from_numpy(theta),
        None if sigma is None else tensor(sigma),
        similarity=similarity,
        normalization=normalization,
    )
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize('transform', [True, False])
@pytest.mark.parametrize('normalization', [True, False])
def test_lct_loops(transform, normalization):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 6, 3, 2))
    weight, bias = rng.normal(size=(2, 6))
    expected = np.empty_like(x)
    for m in range(2):
        z = [x[m, c].sum() / 6 for c in range(6)]
        for c in range(6):
            group = z[c // 3 * 3 : c // 3 * 3 + 3]
            a = z[c]
            if normalization:
                mean = sum(group) / 3
                variance = sum((v - mean) ** 2 for v in group) / 3
                a = (a - mean) / math.sqrt(variance + 1e-5)
            if transform:
                a = weight[c] * a + bias[c]
            expected[m, c] = x[m, c] * sigmoid(a)
    y = reference.lct(
        torch.from_numpy(x),
        torch.from_numpy(weight) if transform else None,
        torch.from_numpy(bias) if transform else None,
        groups=2,
        normalization=normalization,
    )
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize('softmax', [True, False])
@pytest.mark.parametrize('residual', [True, False])
def test_sac_loops(softmax, residual):
    rng = np.random.default_rng(2)
    b, c, h, w, k = 2, 4, 3, 2, 3
    d = c if residual else 5
    x = rng.normal(size=(b, c, h, w))
    w_phi, w_theta, w_rho = (rng.normal(size=(n, c)) for n in (k, k, d))
    b_phi, b_theta, b_rho = (rng.normal(size=n) for n in (k, k, d))
    expected = np.empty((b, d, h, w))
    for m in range(b):
        points = [x[m, :, i // w, i % w] for i in range(h * w)]
        contexts = []
        for j in range(k):
            e = [math.exp(w_phi[j] @ v + b_phi[j]) for v in points]
            contexts.append(sum(a * v for a, v in zip(e, points)) / sum(e))
        for i, v in enumerate(points):
            beta = [w_theta[j] @ v + b_theta[j] for j in range(k)]
            if softmax:
                e = [math.exp(a) for a in beta]
                beta = [a / sum(e) for a in e]
            mixed = sum(a * context for a, context in zip(beta, contexts))
            added = w_rho @ mixed + b_rho
            expected[m, :, i // w, i % w] = v + added if residual else added
    arrays = (x, w_phi, b_phi, w_theta, b_theta, w_rho, b_rho)
    y = reference.sac(
        *map(torch.from_numpy, arrays), softmax=softmax, residual=residual
    )
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-10)


def test_an_empty_batch():
    values = [torch.ones(2)] * 4
    x = torch.empty(0, 4, 3, 5)
    y = reference.prm(x, *values, torch.ones(2), torch.tensor(1.0))
    assert y.shape == x.shape
