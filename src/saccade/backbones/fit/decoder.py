"""The autoregressive decoder: causal inside groups, block-causal over them, with a cache and a sampler."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.fit.layers import EPS, block_causal
from saccade.backbones.fit.network import Interleaved, stack
from saccade.errors import InputError, UsageError
from saccade.registry import register

__all__ = ["Decoding", "FITDecoder"]


@dataclass
class Decoding:
    """Where a decoding stands: keys and values of the group at hand and of all latents so far.

    Attributes:
        group, place: of the token that comes next.
        local: keys and values of the local layers, block by block and layer by layer; of this group alone.
        seen: what this group's tokens were behind the local layers of each block.
        globals: keys and values of the global layers; of all groups that are complete.
        latents: of the last complete group, behind each block; None before there is one.
    """

    group: int = 0
    place: int = 0
    local: list[list[list[Tensor]]] = field(default_factory=list)
    seen: list[list[Tensor]] = field(default_factory=list)
    globals: list[list[list[Tensor]]] = field(default_factory=list)
    latents: list[Tensor | None] = field(default_factory=list)


class FITDecoder(Interleaved):
    """Token by token, with far sight through latents (section 3.3).

    Tokens of a group see the latents of the group before, never their own group's, which have seen what comes later.

    Args:
        args, options: as `Interleaved`.
        vocab_size: how many tokens there are.
        shared_embedding: one table for what comes in and what goes out.
        output_bias: added to the logits.

    Shape: (B, t, n) int64, the sequence one place late (`late`) -> logits (B, t, n, vocab_size).
    """

    def __init__(
        self,
        *args: Any,
        vocab_size: int,
        shared_embedding: bool = True,
        output_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if vocab_size < 1:
            raise UsageError(f"a vocabulary has at least 1 token, not {vocab_size}")
        self.vocab_size, self.shared = vocab_size, shared_embedding
        self.token_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(vocab_size, self.x_dim), std=0.02))
        if not shared_embedding:
            self.outp_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(vocab_size, self.x_dim), std=0.02))
        self.outp_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(vocab_size), std=0.02)) if output_bias else None
        self.x_output_ln = nn.LayerNorm(self.x_dim, EPS)

    def check_ids(self, tokens: Tensor, shape: tuple[int, ...]) -> None:
        """Refuse what are no tokens; nothing is looked at during compilation.

        Raises:
            InputError: another shape or dtype, or a token out of range.
        """
        if torch.compiler.is_compiling():
            return
        if tokens.dtype != torch.int64 or tuple(tokens.shape[1:]) != shape:
            raise InputError(
                f"tokens are int64 (B, {', '.join(map(str, shape))}), not {tokens.dtype} {tuple(tokens.shape)}"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocab_size:
            raise InputError(f"tokens lie in [0, {self.vocab_size - 1}], not in [{tokens.min()}, {tokens.max()}]")

    def logits(self, x: Tensor) -> Tensor:
        """(..., x_dim) -> (..., vocab_size)."""
        out = self.token_embedding if self.shared else self.outp_embedding
        return F.linear(self.x_output_ln(x), out, self.outp_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        self.check_ids(tokens, (self.num_groups, self.per_group))
        batch, groups = tokens.shape[:2]
        x = (F.embedding(tokens, self.token_embedding) + self.x_table).flatten(0, 1)
        z = self.start(batch).flatten(0, 1)
        mask = block_causal(groups, self.used).to(x.device)
        for i, (_, count) in enumerate(self.pattern):
            for layer in stack(self.x_network, i):
                x = self.run(layer, x, causal=True)
            if count:
                z = self.run(self.l2x[i], z, x).unflatten(0, (batch, groups)).flatten(1, 2)
                for layer in stack(self.l_network, i):
                    z = self.run(layer, z, mask)
                z = z.unflatten(1, (groups, -1))  # (B, t, k, d)
                if i < len(self.pattern) - 1:
                    x = self.run(self.x2l[i], x, F.pad(z[:, :-1], (0, 0, 0, 0, 1, 0)).flatten(0, 1))
                z = z.flatten(0, 1)
        return self.logits(x.unflatten(0, (batch, groups)))

    def late(self, sequence: Tensor) -> Tensor:
        """(B, L) -> (B, t, n): one place late, token 0 first: what the network is given to foretell ``sequence``."""
        self.check_ids(sequence, (self.num_groups * self.per_group,))
        return F.pad(sequence[:, :-1], (1, 0)).unflatten(1, (self.num_groups, self.per_group))

    def loss(self, sequence: Tensor) -> Tensor:
        """Mean negative log-likelihood of (B, L) tokens, in nats."""
        return F.cross_entropy(self(self.late(sequence)).flatten(0, 2), sequence.flatten())

    # -- token by token

    def begin(self) -> Decoding:
        """A decoding of which nothing is known yet."""
        return Decoding(
            local=[[[] for _ in range(a)] for a, _ in self.pattern],
            seen=[[] for _ in self.pattern],
            globals=[[[] for _ in range(b)] for _, b in self.pattern],
            latents=[None for _ in self.pattern],
        )

    def step(self, token: Tensor, at: Decoding) -> Tensor:
        """The logits (B, vocab_size) behind one more token (B,) of what came in; ``at`` moves on.

        Raises:
            InputError: no tokens, or more than the network has places.
        """
        self.check_ids(token, ())
        if at.group == self.num_groups:
            raise InputError(f"this network has {self.num_groups * self.per_group} places, all are taken")
        x = (F.embedding(token, self.token_embedding) + self.x_table[at.place])[:, None]
        for i, (_, count) in enumerate(self.pattern):
            for layer, cache in zip(stack(self.x_network, i), at.local[i], strict=True):
                x = layer(x, cache=cache)
            at.seen[i].append(x)
            if count and i < len(self.pattern) - 1:
                before = at.latents[i]
                x = self.x2l[i](x, x.new_zeros(len(x), self.used, self.latent_dim) if before is None else before)
        at.place += 1
        if at.place == self.per_group:
            self._close(at, len(token))
        return self.logits(x[:, 0])

    def _close(self, at: Decoding, batch: int) -> None:
        """A group is complete: its latents go through all blocks, once."""
        z = self.start(batch)[:, at.group]
        for i, (_, count) in enumerate(self.pattern):
            if count:
                z = self.l2x[i](z, torch.cat(at.seen[i], 1))
                for layer, cache in zip(stack(self.l_network, i), at.globals[i], strict=True):
                    z = layer(z, cache=cache)
                at.latents[i] = z
            at.seen[i].clear()
            for cache in at.local[i]:
                cache.clear()
        at.group, at.place = at.group + 1, 0

    @torch.no_grad()
    def generate(self, prefix: Tensor, *, temperature: float = 1.0, seed: int = 0) -> Tensor:
        """Continue sequences to the last place.

        Args:
            prefix: (B, l) tokens that are given; l may be 0.
            temperature: 0 takes the likeliest token each time.
            seed: of the draws.

        Returns:
            (B, L), the prefix first.

        Raises:
            InputError: no tokens, or too many.
        """
        length = self.num_groups * self.per_group
        if prefix.ndim != 2 or prefix.shape[1] > length:
            raise InputError(f"a prefix is (B, up to {length}), not {tuple(prefix.shape)}")
        if temperature < 0:
            raise UsageError(f"a temperature is at least 0, not {temperature}")
        self.check_ids(prefix, (prefix.shape[1],))
        chance = torch.Generator().manual_seed(seed)
        at, made = self.begin(), [prefix.new_zeros(len(prefix))]
        for place in range(length):
            logits = self.step(made[-1], at)
            if place < prefix.shape[1]:
                made.append(prefix[:, place])
            elif temperature == 0:
                made.append(logits.argmax(-1))
            else:
                chances = (logits / temperature).softmax(-1).cpu()
                made.append(torch.multinomial(chances, 1, generator=chance)[:, 0].to(prefix.device))
        return torch.stack(made[1:], 1)


@register("fit_decoder", system="fit", task="token generation")
def fit_decoder(**options: Any) -> nn.Module:
    """FIT's autoregressive decoder; options as `FITDecoder`."""
    return FITDecoder(**options)
