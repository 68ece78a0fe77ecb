"""Statistics of patches, the map between them, and pictures through it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.registry import recognise, register
from saccade.restoration.dot.gaussian import transport_operators, w2
from saccade.restoration.dot.latents import PIXELS, Latent, shipped_autoencoder
from saccade.restoration.dot.patches import CHUNK, Map, fold_weights, patchify

__all__ = ["DeepOptimalTransport", "from_official"]

LARGEST = 1024  # numbers of a patch
UNKNOWN = "unknown"  # the autoencoder of an official state, which does not name it
ROUNDING = 1e-3  # what pictures may lie beyond [0, 1]
Side = Literal["source", "target"]


class DeepOptimalTransport(nn.Module):
    """Optimal transport of the patches of restored pictures onto those of natural ones (section 4).

    ``update_source`` and ``update_target`` collect statistics, as often as wanted; ``compute`` makes the map;
    ``transport`` takes pictures through it. Statistics are sums: those of several processes may be added (`merge`).

    Args:
        patch: side p of the patches in the latent, odd; the official class has 3, the paper's experiments 5.
        channels: of the latent; 3 in pixels.
        eps: smallest eigenvalue of a regular covariance; the official class has 1e-5, the paper's experiments 1e-7.
        fold_size, fold_sigma: taps and sigma of the Gaussian that weighs the pixels of a patch when overlapping ones
            are averaged; by default all p x p evenly.
        codec: name of the autoencoder's weights (`identity`), or "pixels".
        vae: the autoencoder itself: see `Latent`. Sets ``channels`` and ``codec``.
        sample: draw latents from the posterior (as the official code) instead of its mean.
        compat: "official" for the published code's deviations: ``eps`` is added under a root, which blows up directions
            of small variance (`gaussian`), a call ignores its options, and a degenerate source gets one noise vector
            for all patches with covariance C (1 - a)^(1/2), where a vector for each patch with C (1 - a)^2 is due.

    Shape: (B, 3, H, W) in [0, 1] -> the same, not clamped.

    Raises:
        UsageError: even or too large patches or folding windows, or an autoencoder that is none.
    """

    source_features_sum: Tensor
    source_features_cov_sum: Tensor
    source_features_num_samples: Tensor
    target_features_sum: Tensor
    target_features_cov_sum: Tensor
    target_features_num_samples: Tensor
    mean_source: Tensor
    mean_target: Tensor
    cov_source: Tensor
    cov_target: Tensor
    transport_operator: Tensor
    noise_covariance: Tensor

    colour = "rgb"
    in_channels = 3

    def __init__(
        self,
        patch: int = 5,
        channels: int = 3,
        eps: float = 1e-7,
        fold_size: int | None = None,
        fold_sigma: float | None = None,
        codec: str = PIXELS,
        vae: Any = None,
        sample: bool = False,
        compat: str = "right",
    ) -> None:
        super().__init__()
        latent = None if vae is None else Latent(vae, sample)
        if latent is not None:
            channels, codec = latent.channels, latent.identity
        fold_size = patch if fold_size is None else fold_size
        if patch < 1 or patch % 2 == 0 or fold_size < 1 or fold_size % 2 == 0:
            raise UsageError(f"patches and their folding window need odd sides, not {patch} and {fold_size}")
        if fold_size > patch:
            raise UsageError(f"a folding window of {fold_size} is larger than the patches of {patch}")
        size = channels * patch**2
        if not 1 <= size <= LARGEST:
            raise UsageError(f"a patch may hold {LARGEST} numbers, not {channels} x {patch} x {patch}")
        if not (math.isfinite(eps) and eps > 0) or (fold_sigma is not None and not fold_sigma > 0):
            raise UsageError(f"eps and the sigma of folding must be positive, not {eps} and {fold_sigma}")
        if compat not in ("right", "official"):
            raise UsageError(f"compat is right or official, not {compat!r}")
        self.patch, self.channels, self.eps, self.codec, self.sample, self.compat = (
            patch,
            channels,
            float(eps),
            codec,
            sample,
            compat,
        )
        self.weights = fold_weights(patch, fold_size, fold_sigma)
        for side in ("source", "target"):
            self.register_buffer(f"{side}_features_sum", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"{side}_features_cov_sum", torch.zeros(size, size, dtype=torch.float64))
            self.register_buffer(f"{side}_features_num_samples", torch.zeros((), dtype=torch.int64))
        for side in ("source", "target"):
            self.register_buffer(f"mean_{side}", torch.zeros(size, dtype=torch.float64))
            self.register_buffer(f"cov_{side}", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("transport_operator", torch.zeros(size, size, dtype=torch.float64))
        self.register_buffer("noise_covariance", torch.zeros(size, size, dtype=torch.float64))
        self._latent = (latent,)  # a tuple, so that the autoencoder is no part of the state
        self._maps: dict[float, Map] = {}
        self.saccade_name = "dot"
        options: dict[str, Any] = {
            "patch": patch,
            "channels": channels,
            "eps": float(eps),
            "codec": codec,
            "sample": sample,
        }
        options |= {"fold_size": fold_size, "fold_sigma": fold_sigma, "compat": compat}
        self.saccade_options: dict[str, Any] = options

    # -- files

    def save(self, path: str | Path) -> None:
        """Write the statistics and the map as safetensors; the file names the autoencoder by its identity."""
        from saccade.checkpoint import save

        save(self, path)

    @classmethod
    def load(cls, path: str | Path, vae: Any = None) -> DeepOptimalTransport:
        """Read what `save` wrote.

        Args:
            vae: the autoencoder that the statistics were taken with, where it was neither pixels nor ``vae_small``.

        Raises:
            CheckpointError: a damaged or foreign file, or statistics of another autoencoder.
            UsageError: the file needs an autoencoder.
        """
        from saccade.checkpoint import load

        made = load(path)
        if not isinstance(made, cls):
            raise CheckpointError(f"{path} holds no statistics of transport")
        made.check(str(path))
        if vae is not None:
            made.attach(vae)
        elif made.codec != PIXELS and (own := shipped_autoencoder(made.codec)) is not None:
            made.attach(own)
        elif made.codec != PIXELS:
            raise UsageError(f"{path} was made with an autoencoder ({made.codec[:12]}...); give it too")
        return made

    def attach(self, vae: Any) -> None:
        """Use an autoencoder.

        Raises:
            CheckpointError: the statistics are of pixels or of another autoencoder.
        """
        latent = Latent(vae, self.sample)
        if self.codec == UNKNOWN and latent.channels == self.channels:
            self.codec = self.saccade_options["codec"] = latent.identity
        if (latent.identity, latent.channels) != (self.codec, self.channels):
            was = "in pixels" if self.codec == PIXELS else f"with another autoencoder ({self.codec[:12]}...)"
            raise CheckpointError(f"these statistics were taken {was}, not with {latent.identity[:12]}...")
        self._latent = (latent,)

    def autoencoder_to(self, device: Any) -> None:
        """Move the autoencoder, which is no part of the module, to the device of the pictures."""
        latent = self._latent[0]
        if latent is not None:
            latent.model.to(device)

    def check(self, source: str) -> None:
        """Refuse statistics that cannot be.

        Raises:
            CheckpointError: naming the tensor.
        """
        for name, value in self.state_dict().items():
            if not bool(torch.isfinite(value).all()) or (name.endswith("num_samples") and not 0 <= int(value) < 2**53):
                raise CheckpointError(f"{source} is damaged: {name} holds values that are no statistics")
        for name in ("cov_source", "cov_target", "noise_covariance"):
            matrix = getattr(self, name)
            if float((matrix - matrix.mT).abs().max()) > 1e-6 * max(1.0, float(matrix.abs().max())):
                raise CheckpointError(f"{source} is damaged: {name} is not symmetric")

    # -- statistics

    def update_source(self, pictures: Tensor) -> None:
        """Count restored pictures (B, 3, H, W) in [0, 1]."""
        self.update(pictures, "source")

    def update_target(self, pictures: Tensor) -> None:
        """Count natural pictures (B, 3, H, W) in [0, 1]; they need not be those that were restored."""
        self.update(pictures, "target")

    @torch.no_grad()
    def update(self, pictures: Tensor, side: Side, seed: int = 0) -> None:
        """Count pictures on one side.

        Raises:
            InputError: no RGB pictures in [0, 1], or smaller than a patch.
        """
        self._check(pictures)
        latent = self._encode(pictures, torch.Generator().manual_seed(seed)).double()
        sums = [getattr(self, f"{side}_features_{name}") for name in ("sum", "cov_sum", "num_samples")]
        rows = max(self.patch, CHUNK // (len(sums[0]) * latent.shape[3] * len(latent)))
        for top in range(0, latent.shape[2] - self.patch + 1, rows):
            patches = patchify(latent[:, :, top : top + rows + self.patch - 1], self.patch)  # (n, d)
            sums[0] += patches.sum(0)
            sums[1] += patches.mT @ patches
            sums[2] += len(patches)
        self.transport_operator.zero_()

    @torch.no_grad()
    def merge(self, other: DeepOptimalTransport) -> None:
        """Add the sums of another process.

        Raises:
            UsageError: other patches or another latent.
        """
        if (other.patch, other.channels, other.codec) != (self.patch, self.channels, self.codec):
            raise UsageError("only statistics of the same patches and latent can be added")
        for name, value in self.named_buffers():
            if "_features_" in name:
                value += getattr(other, name)
        self.transport_operator.zero_()

    @torch.no_grad()
    def compute(self) -> float:
        """Make the map from the statistics; returns the squared W2 distance of the two sides' patches.

        Raises:
            InputError: fewer than two patches on a side.
        """
        for side in ("source", "target"):
            mean, cov = self._moments(side)
            getattr(self, f"mean_{side}").copy_(mean)
            getattr(self, f"cov_{side}").copy_(cov)
        self._map(self.cov_source)
        return self.distance()

    def _map(self, cov_source: Tensor) -> None:
        operator, noise = transport_operators(cov_source, self.cov_target, self.eps, self.compat)
        self.transport_operator.copy_(operator)
        self.noise_covariance.zero_() if noise is None else self.noise_covariance.copy_((noise + noise.mT) / 2)
        self._maps = {}

    def distance(self) -> float:
        """The squared W2 distance (Gelbrich) of the two sides' patches."""
        return float(w2(self.mean_source, self.mean_target, self.cov_source, self.cov_target, self.eps))

    def _moments(self, side: str) -> tuple[Tensor, Tensor]:
        """Mean (d,) and covariance (d, d)."""
        total, square, count = (getattr(self, f"{side}_features_{name}") for name in ("sum", "cov_sum", "num_samples"))
        if int(count) < 2:
            raise InputError(f"there are {int(count)} patches of {side} pictures, and two are the least: update_{side}")
        if int(count) < len(total):
            warnings.warn(
                f"{int(count)} patches of {len(total)} numbers leave the {side} covariance without full rank; "
                "give more or larger pictures, or smaller patches",
                stacklevel=4,
            )
        mean = total / count
        return mean, (square - count * mean[:, None] * mean) / (count - 1)

    # -- pictures

    @torch.no_grad()
    def transport(
        self, pictures: Tensor, *, zero_shot: bool = False, latent_alpha: float = 0.0, seed: int = 0, slow: bool = False
    ) -> Tensor:
        """Pictures with the patches of natural ones.

        Args:
            pictures: restored ones, (B, 3, H, W) in [0, 1].
            zero_shot: take the source's statistics from these pictures themselves.
            latent_alpha: 0 for the whole map, 1 for none of it (P/G* of the paper); the mix in pixels is `wrap`'s.
            seed: of the noise, for degenerate sources, and of samples of the posterior.
            slow: patch by patch in float64 instead of as a convolution.

        Returns:
            (B, 3, H, W), not clamped.

        Raises:
            InputError: what `update` refuses.
            UsageError: there are no statistics, or ``latent_alpha`` is no number.
        """
        if not math.isfinite(latent_alpha):
            raise UsageError(f"alpha must be a number, not {latent_alpha}")
        self._check(pictures)
        chance = torch.Generator().manual_seed(seed)
        latent = self._encode(pictures, chance)
        maps = self._zero_shot(latent, latent_alpha) if zero_shot else self._at(latent_alpha)
        one_noise = self.compat == "official"
        noisy = maps.noise is not None
        made = maps.slow(latent, chance, one_noise=one_noise) if slow or noisy else maps.fast(latent)
        return self._decode(made.to(latent.dtype), *pictures.shape[-2:]).to(pictures.dtype)

    def forward(self, pictures: Tensor, zero_shot: bool = False, latent_alpha: float = 0.0) -> Tensor:
        """`transport`; with ``compat="official"`` without its options."""
        if self.compat == "official":
            return self.transport(pictures)
        return self.transport(pictures, zero_shot=zero_shot, latent_alpha=latent_alpha)

    @property
    def step(self) -> int:
        """Pixels of a side of a place of the latent; 1 in pixels."""
        latent = self._latent[0]
        return 1 if latent is None else latent.step

    @property
    def bytes_per_pixel(self) -> float:
        """Memory that the autoencoder takes, about; that of diffusers is taken for 4,000 bytes a pixel."""
        latent = self._latent[0]
        return 0.0 if latent is None else float(getattr(latent.model, "bytes_per_pixel", 4_000))

    @property
    def halo(self) -> int | None:
        """Pixels that an output pixel sees beyond its own place, or None with an autoencoder."""
        return self.patch - 1 if self.codec == PIXELS and not bool(self.noise_covariance.any()) else None

    def _at(self, alpha: float) -> Map:
        if not bool(self.transport_operator.any()):
            if min(int(self.source_features_num_samples), int(self.target_features_num_samples)) == 0:
                raise UsageError("there is nothing to transport with yet: update_source, update_target, compute")
            self.compute()
        if alpha not in self._maps:
            if len(self._maps) > 32:
                self._maps.clear()
            operator, mean_source, mean_target = self.transport_operator, self.mean_source, self.mean_target
            self._maps[alpha] = self._mixed(operator, self.noise_covariance, mean_source, mean_target, alpha)
        return self._maps[alpha]

    def _mixed(self, operator: Tensor, noise: Tensor, source: Tensor, target: Tensor, alpha: float) -> Map:
        """T_a = (1 - a) T + a I, and its noise."""
        identity = torch.eye(len(operator), dtype=operator.dtype, device=operator.device)
        share = abs(1 - alpha) ** 0.5 if self.compat == "official" else (1 - alpha) ** 2
        wanted = share * noise if bool(noise.any()) and share > 0 else None
        mixed = (1 - alpha) * operator + alpha * identity
        return Map(mixed, source, target, self.weights.to(operator.device), wanted)

    def _zero_shot(self, latent: Tensor, alpha: float) -> Map:
        """The map from these latents' own statistics; the state stays as it was."""
        own = DeepOptimalTransport(self.patch, self.channels, self.eps)
        own.to(latent.device)
        for image in latent.double():
            patches = patchify(image[None], self.patch)
            own.source_features_sum += patches.sum(0)
            own.source_features_cov_sum += patches.mT @ patches
            own.source_features_num_samples += len(patches)
        if int(self.target_features_num_samples) == 0:
            raise UsageError("zero-shot transport needs the statistics of natural pictures: update_target")
        mean_source, cov_source = own._moments("source")
        mean_target, cov_target = self._moments("target")
        operator, noise = transport_operators(cov_source, cov_target, self.eps, self.compat)
        return self._mixed(
            operator, torch.zeros_like(operator) if noise is None else noise, mean_source, mean_target, alpha
        )

    def _check(self, pictures: Tensor) -> None:
        takes = "transport takes float pictures (B, 3, h, w) in [0, 1]"
        if pictures.ndim != 4 or not pictures.is_floating_point() or pictures.shape[1] != 3 or not pictures.numel():
            raise InputError(f"{takes}, not {pictures.dtype} {tuple(pictures.shape)}")
        low, high = (float(v) for v in torch.aminmax(pictures.detach()))
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            hint = "divide by 255" if high > 2 else "halve and add 1/2" if low < -0.5 else "clamp them"
            raise InputError(f"{takes}, these lie in [{low:.3g}, {high:.3g}]; {hint}")
        step = self.step
        if min(-(-n // step) for n in pictures.shape[-2:]) < self.patch:
            least = (self.patch - 1) * step + 1
            raise InputError(f"pictures of {pictures.shape[3]}x{pictures.shape[2]} are smaller than a patch ({least})")

    def _encode(self, pictures: Tensor, chance: torch.Generator) -> Tensor:
        latent = self._latent[0]
        if latent is None and self.codec != PIXELS:
            raise UsageError(f"these statistics need their autoencoder ({self.codec[:12]}...): attach(vae)")
        return 2 * pictures - 1 if latent is None else latent.encode(2 * pictures - 1, chance)

    def _decode(self, made: Tensor, height: int, width: int) -> Tensor:
        latent = self._latent[0]
        return (made if latent is None else latent.decode(made, height, width)) / 2 + 0.5

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Statistics stay in float64 whatever the module is cast to; devices are followed."""
        self._maps = {}
        return super()._apply(lambda t: t.to(fn(t).device) if t.is_floating_point() else fn(t), recurse)

    def load_state_dict(self, *args: Any, **options: Any) -> Any:
        self._maps = {}
        return super().load_state_dict(*args, **options)

    def extra_repr(self) -> str:
        return f"patch={self.patch}, channels={self.channels}, eps={self.eps:g}, codec={self.codec[:12]}"


@register("dot", system="dot", task="perceptual transport")
def dot(**options: Any) -> DeepOptimalTransport:
    """Statistics of restored and natural pictures, and the map between them; without statistics when fresh."""
    return DeepOptimalTransport(**options)


@recognise("dot", keys=("source_features_cov_sum", "target_features_cov_sum"))
def from_official(state: StateDict) -> Recipe | None:
    """The official metric's state (pixels, or four latent channels) -> ours; what it has not computed is left zero."""
    size = len(state["source_features_sum"])
    channels = next((c for c in (3, 4) if size % c == 0 and math.isqrt(size // c) ** 2 * c == size), None)
    if channels is None:
        return None
    patch = math.isqrt(size // channels)
    if patch % 2 == 0:
        raise CheckpointError(f"a state with patches of {size} numbers has none of odd sides")
    codec = PIXELS if channels == 3 else UNKNOWN
    own = DeepOptimalTransport(patch, channels, codec=codec).state_dict()
    kept = {name: state[name].to(own[name].dtype) if name in state else own[name] for name in own}
    return Recipe("dot", {"patch": patch, "channels": channels, "codec": codec}, kept)
