"""Attention linear in the tokens, whose queries and keys are codes of 0 and 1: it multiplies nothing by anything.

    per head   out = v / 2 + b_q (b_k^T v) / pi,   out / |out| + conv_{r x 1}(v)        angular attention (Castling-ViT)
    vanilla    b = 1[x > mean(x)] of x / |x|                                            queries and keys apart
    hashing    b = 1[sum_j A_kj kappa_j(x) > 0],  kappa_j = exp(-|x - a_j|^2 / 2 sigma) - mean_j     one code for both

b_k^T v adds the values of the tokens whose bit is set; b_q selects and adds again (section 4.1; EcoFormer for hashing).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError

__all__ = ["BinaryAttention", "HashAttention", "KernelHash", "SoftmaxAttention", "binarise"]

Linear = Callable[[int, int], nn.Module]
SPARSE = 0.02  # attention from which on a pair counts as strong
EPS = 1e-12  # under a norm, so that a token of zeros stays one; the published code gives NaN there


class _Binarise(torch.autograd.Function):
    """1[x > 0] of a difference; the gradient passes where ``pass_`` says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: Tensor) -> Tensor:
        ctx.save_for_backward(passes)
        return (x > 0).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (passes,) = ctx.saved_tensors
        return grads[0] * passes, None


def _step(x: Tensor, over: Tensor | float = 0.0) -> Tensor:
    """1[x > over], whose gradient is that of clamp(x, 0, 1), the threshold left out."""
    made = x > over
    if not (x.requires_grad and torch.is_grad_enabled()):
        return made.to(x.dtype)
    if torch.compiler.is_compiling():
        held = x.clamp(0, 1)
        return made.to(x.dtype) + (held - held.detach())
    found: Tensor = _Binarise.apply((x.detach() - over) + (x - x.detach()), (x > 0) & (x < 1))
    return found


def binarise(x: Tensor, compat: str = "") -> Tensor:
    """1[x > mean(x)] (vanilla): the mean of each picture, (B, ...) -> the same shape.

    ``compat="official"`` takes the mean of the whole batch, which makes a picture's code depend on its company.
    """
    mean = x.mean() if compat == "official" else x.mean(tuple(range(1, x.ndim)), keepdim=True)
    return _step(x, mean.detach())


class KernelHash(nn.Module):
    """Kernel-supervised hashing of unit vectors: which side of learnt hyperplanes their kernel features lie on.

    Fresh codes are random; `fit` learns them from tokens, once. Published code does that at its first batch without a
    word, and again after loading; here nothing happens unless asked, and what was fitted is saved.

    Args:
        heads, width: of the attention.
        bits: of a code.
        anchors: m, tokens that all others are compared with.

    Shape: (B, heads, N, width) -> (B, heads, N, bits) of 0 and 1.
    """

    A: Tensor
    mvec: Tensor
    anchor: Tensor

    def __init__(self, heads: int, width: int, bits: int = 16, anchors: int = 25) -> None:
        super().__init__()
        if bits < 1 or anchors < 1:
            raise UsageError(f"a hash has at least 1 bit and 1 anchor, not {bits} and {anchors}")
        self.register_buffer("A", torch.randn(heads, bits, anchors))
        self.register_buffer("anchor", F.normalize(torch.randn(1, heads, anchors, width), dim=-1))
        self.register_buffer("mvec", torch.zeros(1, heads, 1, anchors))

    def kernel(self, x: Tensor) -> Tensor:
        """kappa (B, H, N, m); sigma is the mean squared distance of this picture's tokens from the anchors, a head."""
        square = x.square().sum(-1, keepdim=True) + self.anchor.square().sum(-1)[..., None, :]
        distance = (square - 2 * x @ self.anchor.mT).clamp(min=0)
        sigma = distance.mean((-2, -1), keepdim=True).clamp(min=EPS)
        return torch.exp(-distance / (2 * sigma))

    def forward(self, x: Tensor) -> Tensor:
        return _step((self.kernel(x) - self.mvec) @ self.A.mT)

    @torch.no_grad()
    def fit(
        self,
        x: Tensor,
        similar: Tensor | None = None,
        *,
        neighbours: int = 10,
        steps: int = 100,
        rate: float = 5e-4,
        seed: int | None = 0,
    ) -> None:
        """Learn the hyperplanes, bit by bit, so that codes of similar tokens agree.

        Args:
            x: (B, H, N, width), the unit vectors that will be coded.
            similar: (B, H, N, N), 1 for pairs that should agree, -1 for those that should not, 0 where it does not
                matter; None for the ``neighbours`` nearest and farthest of each token.
            neighbours: k.
            steps, rate: of gradient descent a bit (Nesterov momentum 0.9).
            seed: of anchors and first hyperplanes, drawn anew; None to keep those that are there.

        Raises:
            InputError: fewer tokens than neighbours or anchors, or tokens that are not finite.
        """
        tokens, anchors = x.shape[-2], self.anchor.shape[-2]
        if not bool(x.isfinite().all()):
            raise InputError("cannot fit hashes to tokens that are not finite")
        if tokens < max(neighbours if similar is None else 0, anchors if seed is not None else 0):
            raise InputError(f"{tokens} tokens do not give {neighbours} neighbours and {anchors} anchors: fit on more")
        if seed is not None:
            chance = torch.Generator().manual_seed(seed)
            places = torch.randperm(tokens, generator=chance)[:anchors].to(x.device)
            self.anchor.copy_(x[:1, :, places])
            self.A.copy_(torch.randn(self.A.shape, generator=chance))
        target = similarity(x, neighbours) if similar is None else similar
        kernel = self.kernel(x)
        self.mvec.copy_(kernel.mean((0, 2), keepdim=True))
        _fit_bits(kernel - self.mvec, target, self.A, steps, rate)


def similarity(x: Tensor, neighbours: int) -> Tensor:
    """(B, H, N, N): 1 for the ``neighbours`` largest dot products of a token, -1 for the smallest, else 0."""
    products = x @ x.mT
    made = torch.zeros_like(products)
    made.scatter_(-1, products.topk(neighbours, -1, largest=False).indices, -1.0)
    return made.scatter_(-1, products.topk(neighbours, -1).indices, 1.0)


def _agreement(y: Tensor, target: Tensor, bits: int) -> Tensor:
    """-y^T S y / (N bits), a head: (B, H, N, 1), (B, H, N, N) -> (H,)."""
    return -(y.mT @ target @ y)[..., 0, 0].mean(0) / (y.shape[-2] * bits)


def _fit_bits(kernel: Tensor, target: Tensor, planes: Tensor, steps: int, rate: float) -> None:
    """Bit by bit, in place; each next one is to explain what the codes so far do not."""
    bits = planes.shape[1]
    rest = bits * target
    for bit in range(bits):
        first = planes[:, bit, :, None]  # (H, m, 1)
        with torch.enable_grad():
            plane = first.clone().requires_grad_()
            optimiser = torch.optim.SGD([plane], rate, momentum=0.9, nesterov=True)
            for _ in range(steps):
                loss = _agreement(2 * torch.sigmoid(kernel @ plane) - 1, rest, bits).mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        before, after = (_agreement((kernel @ p).sign(), rest, bits).mean() for p in (first, plane.detach()))
        if bool(after < before):
            planes[:, bit] = plane.detach()[..., 0]
        y = (kernel @ planes[:, bit, :, None]).sign()
        rest = rest - y @ y.mT


def _angular(code_q: Tensor, code_k: Tensor, v: Tensor, more: Tensor | None = None) -> Tensor:
    """v / 2 + b_q (b_k^T v) / pi, and ``more``, of length 1 a token and head."""
    made = v / 2 + code_q @ (code_k.mT @ v) / math.pi
    return F.normalize(made if more is None else made + more, dim=-1, eps=EPS)


def _strongest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(A 1[A > 0.02]) v with A the soft-max attention, (B, H, N, d): what codes miss, for training alone."""
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
    return (weights * (weights > SPARSE)) @ v


class AngularAttention(nn.Module):
    """What both have in common: heads, the convolution along the tokens, the projection; ``code_bits`` of a code."""

    code_bits: int

    def __init__(self, width: int, heads: int, kernel: int, linear: Linear, sparse: bool) -> None:
        super().__init__()
        if width % heads or kernel % 2 == 0:
            raise UsageError(f"{heads} heads must divide {width} channels, and {kernel} taps be an odd number")
        self.heads, self.sparse = heads, sparse
        self.dconv = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)
        self.proj = linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, H, N, C / H)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, codes: tuple[Tensor, Tensor], v: Tensor) -> Tensor:
        """(B, N, C) of queries, keys, their codes, and values a head; ``dconv`` runs along the row-major order."""
        strongest = _strongest(q, k, v) if self.sparse and self.training else None
        mixed = _angular(*codes, v, strongest) + self.dconv(v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


def _check_order(x: Tensor, size: tuple[int, int]) -> None:
    """Refuse tokens that cannot lie in the row-major order of a map of this size: a convolution runs along it."""
    if not torch.compiler.is_compiling() and x.shape[1] != size[0] * size[1]:
        raise InputError(f"{x.shape[1]} tokens are not those of a map of {size[1]} x {size[0]}, row by row")


class BinaryAttention(AngularAttention):
    """Angular attention of vanilla codes (``LinAngularAttention_binary``).

    Args:
        width, heads: channels and heads.
        kernel: r, taps of the convolution along the tokens.
        linear: makes the linear layers.
        compat: as `binarise`.
        sparse: in training the strongest entries of soft-max attention are added (``sparse_reg``), N^2 of them to find.

    Shape: (B, N, C) -> (B, N, C), tokens in row-major order.

    Raises:
        UsageError: heads that do not divide the channels, an even kernel.
        InputError: another number of tokens than the map has.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kernel: int = 9,
        linear: Linear = nn.Linear,
        compat: str = "",
        sparse: bool = False,
    ) -> None:
        super().__init__(width, heads, kernel, linear, sparse)
        self.qkv, self.compat, self.code_bits = linear(width, 3 * width), compat, width // heads

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        _check_order(x, size)
        q, k, v = (self.split(t) for t in self.qkv(x).chunk(3, 2))
        code_q, code_k = (binarise(F.normalize(t, dim=-1, eps=EPS), self.compat) for t in (q, k))
        return self.attend(q, k, (code_q, code_k), v)


class HashAttention(AngularAttention):
    """Angular attention of hash codes; queries and keys share a projection and so a code (``LinAngularAttention_ksh``).

    Args:
        width, heads: channels and heads.
        bits, anchors: of the hash.
        kernel: r, taps of the convolution along the tokens.
        linear: makes the linear layers.
        sparse: as `BinaryAttention`.

    Shape: (B, N, C) -> (B, N, C), tokens in row-major order.

    Raises:
        UsageError: heads that do not divide the channels, an even kernel, no bit or anchor.
        InputError: another number of tokens than the map has.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        bits: int = 16,
        anchors: int = 25,
        kernel: int = 9,
        linear: Linear = nn.Linear,
        sparse: bool = False,
    ) -> None:
        super().__init__(width, heads, kernel, linear, sparse)
        self.to_qk, self.to_v = linear(width, width), linear(width, width)
        self.hash, self.code_bits = KernelHash(heads, width // heads, bits, anchors), bits

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        _check_order(x, size)
        shared = self.split(self.to_qk(x))
        code = self.hash(F.normalize(shared, dim=-1, eps=EPS))
        return self.attend(shared, shared, (code, code), self.split(self.to_v(x)))


class SoftmaxAttention(nn.Module):
    """Ordinary attention; with ``reduction`` above 1 keys and values are of a coarser map (PVTv2).

    Args:
        width, heads: channels and heads.
        reduction: stride of the convolution before keys and values.
        linear: makes the linear layers.

    Shape: (B, N, C) -> (B, N, C).
    """

    def __init__(self, width: int, heads: int, reduction: int = 1, linear: Linear = nn.Linear) -> None:
        super().__init__()
        if width % heads:
            raise UsageError(f"{heads} heads must divide {width} channels")
        self.heads = heads
        self.q, self.kv, self.proj = linear(width, width), linear(width, 2 * width), linear(width, width)
        self.sr = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        q = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.sr is not None and self.norm is not None:
            x = self.norm(self.sr(x.mT.unflatten(2, size)).flatten(2).mT)
        k, v = self.kv(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out
