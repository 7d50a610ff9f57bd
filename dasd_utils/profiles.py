"""The two profiles, `tiny` and `sd15`, and the published settings by name: nothing but config values."""

from __future__ import annotations

from typing import Any

from dasd_utils.config import (
    Calibration,
    Config,
    DomainConfig,
    EvaluationConfig,
    LoraSettings,
    ModelConfig,
    TrainingConfig,
)

SATELLITE_WORDS = (
    "a satellite image",
    "an aerial view",
    "an overhead photograph from above",
    "a top-down remote sensing image",
)
XRAY_WORDS = (
    "a chest x-ray",
    "a medical radiograph",
    "a scan of the lungs",
    "a frontal radiograph of the thorax",
)


def _tiny() -> Config:
    """The embedded default: a small latent diffusion model and the toy world, on a CPU in minutes."""
    calibrated = Calibration(guidance_scale=4.0, num_inference_steps=15, scheduler="dpm++")
    calibrated_xray = Calibration(guidance_scale=5.0, num_inference_steps=15, scheduler="dpm++")
    return Config(
        profile="tiny",
        shipped_run="data/tiny-run",
        model=ModelConfig(attention="plain", half_weights=False),
        lora=LoraSettings(rank=32, alpha=128.0, dropout=0.0),  # dropout is slow on a CPU
        source=DomainConfig("painting", "toyworld:painting", num_images=300, calibration=calibrated),
        domains=(
            DomainConfig(
                "satellite",
                "toyworld:satellite",
                token="<satellite>",
                initial_word="aerial",
                descriptions=SATELLITE_WORDS,
                style_suffix="satellite image from above",
                calibration=calibrated,
            ),
            DomainConfig(
                "xray",
                "toyworld:xray",
                token="<xray>",
                initial_word="radiograph",
                descriptions=XRAY_WORDS,
                style_suffix="chest x-ray radiograph",
                calibration=calibrated_xray,
            ),
        ),
        evaluation=EvaluationConfig(num_inference_steps=15, scheduler="dpm++"),
    )


def _sd15() -> Config:
    """Stable Diffusion 1.5 and the three hub data sets; better defaults than the published ones."""
    return Config(
        profile="sd15",
        model=ModelConfig(
            base="stable-diffusion-v1-5/stable-diffusion-v1-5",
            base_revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
            base_variant="fp16",
            clip="openai/clip-vit-base-patch32",
            clip_revision="3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            resolution=512,
        ),
        source=DomainConfig("painting", "huggan/few-shot-art-painting", caption="a painting", num_images=300),
        domains=(_rsicd(), _chest_xray()),
        lora=LoraSettings(dropout=0.0),  # it would keep a copy of each layer's input for the backward pass
        training=TrainingConfig(
            max_train_steps=1500,
            target_batch_size=3,
            source_batch_size=1,
            gradient_accumulation_steps=4,
            learning_rate=1e-4,
            token_learning_rate=5e-4,
            gradient_checkpointing=True,
        ),
        evaluation=EvaluationConfig(guidance_scale=7.5),
    )


def _rsicd() -> DomainConfig:
    return DomainConfig(
        "satellite",
        "arampacha/rsicd",
        token="<satellite>",
        initial_word="aerial",
        caption_column="captions",
        test_split="test",
        descriptions=SATELLITE_WORDS,
        style_suffix="satellite image from above",
        calibration=Calibration(7.0, 30, "ddim"),
    )


def _chest_xray() -> DomainConfig:
    return DomainConfig(
        "xray",
        "hf-vision/chest-xray-pneumonia",
        token="<xray>",
        initial_word="radiograph",
        label_column="label",
        label_captions={
            "NORMAL": "a chest x-ray of a child with clear lungs",
            "PNEUMONIA": "a chest x-ray of a child with pneumonia",
        },
        test_split="test",
        descriptions=XRAY_WORDS,
        style_suffix="chest x-ray radiograph",
        calibration=Calibration(7.5, 30, "ddim"),
    )


PROFILES = {"tiny": _tiny, "sd15": _sd15}

PUBLISHED_CALIBRATION = {
    "satellite": Calibration(7.0, 30, "ddim"),
    "xray": Calibration(7.5, 30, "ddim"),
    "default": Calibration(7.5, 30, "ddpm"),
}

# The published settings by name: Config.setup("sd15", **PUBLISHED).
PUBLISHED: dict[str, Any] = {
    "dropout": 0.1,
    "learning_rate": 1e-5,
    "token_learning_rate": 5e-5,
    "target_batch_size": 1,
    "source_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "max_train_steps": 1500,
    "lambda_align": 0.01,
    "kernel": "gaussian",
    "unbiased": False,
    "pooling": "flat",
    "queue_size": 0,
    "min_snr_gamma": None,
    "caption_dropout": 0.0,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
}
