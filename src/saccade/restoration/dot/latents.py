"""Where patches are transported: in pixels, or in the latent of an autoencoder of any kind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import CheckpointError, UnavailableError, UsageError, first_line

__all__ = ["PIXELS", "Latent", "identity", "open_autoencoder", "shipped_autoencoder"]

PIXELS = "pixels"


def identity(model: nn.Module) -> str:
    """A name for the weights of an autoencoder: SHA-256 over the names, shapes and float32 values of its tensors."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        plain = value.detach().cpu().float() if value.is_floating_point() else value.detach().cpu().long()
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(plain.contiguous().numpy().tobytes())
    return digest.hexdigest()


def open_autoencoder(path: str | Path) -> nn.Module:
    """The autoencoder of a file of ours, or of a folder that diffusers wrote. Pickles are never opened.

    Raises:
        CheckpointError: there is none, or it is damaged.
        UnavailableError: a folder, and the ``generation`` extra is not installed.
    """
    path = Path(path)
    if path.is_file():
        from saccade.checkpoint import load

        return load(path)
    if not path.is_dir():
        raise CheckpointError(f"no autoencoder at {path}: give a folder that diffusers wrote, or a file of weights")
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UnavailableError.extra("the autoencoder of diffusers", "generation") from error
    try:
        made: nn.Module = AutoencoderKL.from_pretrained(str(path), use_safetensors=True, local_files_only=True)
    except Exception as error:  # of many kinds, by what is missing or damaged
        raise CheckpointError(f"cannot read the autoencoder in {path}: {first_line(error)}") from error
    return made


def shipped_autoencoder(name: str) -> nn.Module | None:
    """The autoencoder that ships, if these are its weights (`identity`)."""
    from saccade import registry

    if registry.default_weights("vae_small") is None:
        return None
    made = registry.create("vae_small")
    return made if identity(made) == name else None


class Latent:
    """Pictures in [-1, 1] to latents and back, through an autoencoder.

    Args:
        model: `saccade.restoration.autoencoder.Autoencoder`, or what has the interface of diffusers' AutoencoderKL:
            ``encode(x).latent_dist`` with ``sample`` and ``mode``, and ``decode(z).sample``. It is put into evaluation
            mode, kept out of training, and stays where it is: move it to the device of the pictures yourself.
        sample: draw from the posterior, as the official code does, instead of taking its mean.

    Raises:
        UsageError: an object without these.
    """

    def __init__(self, model: Any, sample: bool = False) -> None:
        from saccade.restoration.autoencoder import Autoencoder

        self.own = isinstance(model, Autoencoder)
        if not (isinstance(model, nn.Module) and hasattr(model, "encode") and hasattr(model, "decode")):
            raise UsageError(f"{type(model).__name__} is no autoencoder: it needs encode and decode")
        self.model: Any = model.eval().requires_grad_(False)
        self.sample = sample
        self.step, self.channels = self._geometry()
        self.identity = identity(model)

    def _geometry(self) -> tuple[int, int]:
        """Pixels of a latent place's side, and channels."""
        if self.own:
            return int(self.model.step), int(self.model.channels)
        try:
            config = self.model.config
            return 2 ** (len(config.block_out_channels) - 1), int(config.latent_channels)
        except AttributeError as error:
            raise UsageError(f"{type(self.model).__name__} does not tell the size of its latent") from error

    def encode(self, pictures: Tensor, chance: torch.Generator | None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, c, ceil(H/step), ceil(W/step)); sides are reflected to whole places.

        In the autoencoder's own precision, whatever that of the pictures.
        """
        pictures = pictures.to(next(self.model.parameters()).dtype)
        below, beside = (-n % self.step for n in pictures.shape[-2:])
        if below or beside:
            reflects = below < pictures.shape[-2] and beside < pictures.shape[-1]
            pictures = F.pad(pictures, (0, beside, 0, below), mode="reflect" if reflects else "replicate")
        if self.own:
            mean, log_variance = self.model.encode((pictures + 1) / 2)
            if not self.sample:
                return torch.as_tensor(mean)
            noise = torch.randn(mean.shape, generator=chance, dtype=mean.dtype).to(mean.device)
            return torch.as_tensor(mean + (log_variance / 2).exp() * noise)
        posterior = self.model.encode(pictures).latent_dist
        return torch.as_tensor(posterior.sample(generator=chance) if self.sample else posterior.mode())

    def decode(self, latent: Tensor, height: int, width: int) -> Tensor:
        """(B, c, h, w) -> (B, 3, height, width) around [-1, 1], not clamped."""
        made = 2 * self.model.decode(latent) - 1 if self.own else self.model.decode(latent).sample
        return torch.as_tensor(made)[..., :height, :width]
