"""Sizes and budgets of the embedded base."""

from dataclasses import dataclass

WORLD_SEED = 100  # data sets of the course use other seeds, so their images are new to every part


@dataclass(frozen=True)
class PretrainConfig:
    """Sizes and budgets; the values are those that made the shipped weights."""

    seed: int = 0
    output_dir: str = "data/tiny-sd"
    work_dir: str = "data/cache/pretrain"
    resolution: int = 64  # pixels
    paintings: int = 60_000  # rendered images, a domain
    others: int = 24_000
    vae_channels: tuple[int, ...] = (32, 64, 96)
    vae_steps: int = 9_000
    vae_batch_size: int = 8  # whole images; twice as many 32 px crops before the decay
    kl_weight: float = 2e-4
    clip_width: tuple[int, int] = (128, 160)  # channels of the text and the vision tower
    clip_steps: int = 3_000
    clip_batch_size: int = 96  # pairs
    everyday: int = 16  # texts a batch that match no image
    vocab_size: int = 2_000
    unet_channels: tuple[int, ...] = (64, 128, 160)
    unet_steps: int = 4_200
    unet_batch_size: int = 64
    caption_dropout: float = 0.1
    reader_steps: int = 1_500
    reader_batch_size: int = 64
    learning_rate: float = 1e-3
    decay: float = 0.2  # the share of a stage's steps, at its end, in which the learning rate falls to 0
    ema_decay: float = 0.998
    log_every: int = 50  # steps
    checkpoint_every: int = 250  # steps
    preview_every: int = 1_000  # steps between grids of pictures in the stage's folder

    def decay_starts(self, steps: int) -> int:
        """Return the first step of a stage's decay."""
        return steps - max(1, round(self.decay * steps))
