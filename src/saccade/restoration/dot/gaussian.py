"""Optimal transport between Gaussians: the map, its cost, and the noise that a degenerate source needs.

Freirich, Michaeli and Meir, "A Theory of the Distortion-Perception Tradeoff in Wasserstein Space", NeurIPS 2021, eqs.
17 and 19. Everything is float64; roots are taken of eigenvalues that are clamped at zero.

The published code adds ``eps`` to the product of the two covariances before its root, so that rounding makes no
negative eigenvalue. That product is the square of a variance: in pixels, where variances of 1e-5 are common, an ``eps``
of 1e-7 is a thousand times the product, and the map blows such directions up thirtyfold. Clamped roots need no such
help, so ours adds nothing; ``compat="official"`` does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["make_psd", "root", "transport_operators", "w2"]

_SYMMETRY = 1e-8  # sum of squares of what a covariance may differ from its transpose


def root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric matrix (d, d); what rounding made negative counts as zero."""
    return _spectral(matrix, lambda values: values.clamp_min(0).sqrt())


def _inverse_root(matrix: Tensor) -> Tensor:
    return _spectral(matrix, lambda values: values.rsqrt())


def _spectral(matrix: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * function(values)) @ vectors.mT


def make_psd(matrix: Tensor, eps: float | None = None) -> Tensor:
    """(d, d) plus as much of the identity as makes it positive semidefinite, and ``eps`` more if given."""
    lack = torch.linalg.eigvalsh(matrix)[0].clamp(max=0).abs() + (eps or 0.0)
    return matrix + lack * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def transport_operators(
    source: Tensor, target: Tensor, eps: float, compat: str = "right"
) -> tuple[Tensor, Tensor | None]:
    """The map T of optimal transport from N(0, source) to N(0, target), and the covariance of the noise to add.

    Args:
        source, target: covariances (d, d), float64.
        eps: the smallest eigenvalue of a source that counts as regular.
        compat: "official" adds ``eps`` to the product under a regular source's root, as the published code does.

    Returns:
        T (d, d), and None (eq. 17), or for a degenerate source the covariance (d, d) of independent noise (eq. 19).
    """
    regular = float((source - source.mT).square().sum()) < _SYMMETRY and float(torch.linalg.eigvalsh(source)[0]) > eps
    if regular:
        inward, outward = root(source), _inverse_root(source)
        product = inward @ target @ inward
        return outward @ root(make_psd(product, eps) if compat == "official" else product) @ outward, None
    inward, outward = root(target), _inverse_root(make_psd(target, eps))
    mix = root(make_psd(inward @ source @ inward))
    pseudo = torch.linalg.pinv(source, atol=eps**0.5)
    back = inward @ (outward @ mix @ outward)  # target's root times T*, the map from target to source
    identity = torch.eye(len(source), dtype=source.dtype, device=source.device)
    noise = inward @ (identity - back @ pseudo @ back.mT) @ inward
    return inward @ mix @ outward @ pseudo, noise


def w2(mean_source: Tensor, mean_target: Tensor, source: Tensor, target: Tensor, eps: float) -> Tensor:
    """Squared Wasserstein-2 distance of two Gaussians (Gelbrich): () from means (d,) and covariances (d, d)."""
    source, target = make_psd(source, eps), make_psd(target, eps)
    inward = root(target)
    mixed = root(make_psd(inward @ source @ inward))
    return (mean_source - mean_target).square().sum() + (source + target - 2 * mixed).trace()
