"""models.py: loading, domain tokens, LoRA, and the pass that stops early for the source."""

import dataclasses
import functools
import json
import logging
import shutil

import narrow
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from dasd_utils import models
from dasd_utils.config import DasdError, LoraSettings


def all_weights(parts):
    modules = (parts.text_encoder, parts.unet, parts.vae)
    return {f"{i}.{n}": v for i, module in enumerate(modules) for n, v in module.state_dict().items()}


def noisy_batch(latent=8):
    """Return latents, timesteps and a random text condition, of three rows."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(3, 4, latent, latent, generator=generator)
    timesteps = torch.randint(0, 1000, (3,), generator=generator)
    return latents, timesteps, torch.randn(3, 77, narrow.HIDDEN, generator=generator)


@torch.no_grad()
def predicted(parts):
    """Return the noise that the UNet of the parts predicts for one fixed batch."""
    return parts.unet(*noisy_batch()).sample


# loading


def test_parts_are_frozen_in_eval_mode_and_found_by_name(parts, base_dir):
    for module in (parts.text_encoder, parts.unet, parts.vae):
        assert not module.training
        assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {(torch.float32, False)}
    assert parts["unet"] is parts.unet and parts["token_ids"] == {}
    theirs = PNDMScheduler.from_pretrained(base_dir, subfolder="scheduler")
    assert torch.equal(parts.noise_scheduler.alphas_cumprod, theirs.alphas_cumprod)


def test_a_base_that_is_not_there_is_named(tiny_config, tmp_path):
    with pytest.raises(DasdError, match="nowhere"):
        models.load_parts(tiny_config.replace(base=tmp_path / "nowhere"))
    (tmp_path / "base" / "unet").mkdir(parents=True)
    with pytest.raises(DasdError, match=r"The text_encoder of .* cannot be loaded"):
        models.load_parts(tiny_config.replace(base=tmp_path / "base"))
    with pytest.raises(DasdError, match=r"text_encoder.*variant fp16.*or the variant"):
        models.load_parts(tiny_config.replace(base_variant="fp16"))


def predict_velocity(base):
    path = base / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))


def cut_vae(base):
    (base / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")


def enlarge_tokenizer(base):
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(base / "tokenizer")


def widen_unet(base):
    narrow.make_unet(cross_attention_dim=16).save_pretrained(base / "unet")


def spoil_unet(base):
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.bias"][0] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    "damage, match",
    [
        (spoil_unet, "The unet of the base .* holds NaN or infinity"),
        (cut_vae, "The vae of .* cannot be loaded"),
        (predict_velocity, "v_prediction"),
        (enlarge_tokenizer, r"\d+ tokens, the text encoder \d+"),
        (widen_unet, "no Stable Diffusion"),
    ],
)
def test_a_base_that_is_damaged_or_of_another_kind_is_refused(tiny_config, base_dir, tmp_path, damage, match):
    base = shutil.copytree(base_dir, tmp_path / "base")
    damage(base)
    with pytest.raises(DasdError, match=match):
        models.load_parts(tiny_config.replace(base=base))


# domain tokens


def test_rows_start_at_the_mean_of_the_initial_words_pieces(parts):
    matrix = parts.text_encoder.get_input_embeddings().weight
    words = [domain.initial_word for domain in parts.config.domains]
    pieces = parts.tokenizer(words, add_special_tokens=False).input_ids
    assert [len(p) for p in pieces] == [1, 3]  # "aerial"; "radiograph"
    first = len(parts.tokenizer)
    ids = models.add_domain_tokens(parts, parts.config.domains)
    assert ids == {"<satellite>": first, "<xray>": first + 1} == parts.token_ids
    expected = torch.stack([matrix[each].mean(dim=0) for each in pieces])
    torch.testing.assert_close(parts.tokens.weight.detach(), expected)


def test_new_ids_read_the_rows_and_old_ids_the_matrix(parts):
    embedding = parts.text_encoder.get_input_embeddings()
    ids = models.add_domain_tokens(parts, parts.config.domains)
    vectors = embedding(torch.tensor([[5, ids["<xray>"], 7, ids["<satellite>"]]]))
    assert torch.equal(vectors[0, [0, 2]], embedding.weight[[5, 7]])
    assert torch.equal(vectors[0, [3, 1]], parts.tokens.weight)
    with pytest.raises(IndexError):
        embedding(torch.tensor([[max(ids.values()) + 1]]))
    for prompt in ("<xray> lungs", "lungs, <XRAY>", "lungs<xray>heart"):  # one piece anywhere, in any case
        assert parts.tokenizer(prompt).input_ids.count(ids["<xray>"]) == 1


def test_gradients_reach_only_the_rows_a_prompt_names(parts):
    models.add_domain_tokens(parts, parts.config.domains)
    models.encode_prompts(parts, ["<xray> lungs", "a village"]).pow(2).sum().backward()
    satellite, xray = parts.tokens.weight.grad
    assert not satellite.any() and xray.abs().min() > 0
    assert all(p.grad is None for p in parts.text_encoder.parameters())


def test_rows_equal_a_resized_matrix(parts, base_dir):
    models.add_domain_tokens(parts, parts.config.domains)
    torch.nn.init.normal_(parts.tokens.weight)
    resized = CLIPTextModel.from_pretrained(base_dir, subfolder="text_encoder").eval()
    resized.resize_token_embeddings(len(parts.tokenizer))
    with torch.no_grad():
        resized.get_input_embeddings().weight[-2:] = parts.tokens.weight
    prompts = ["<satellite> a village", "<xray> lungs", "a still life"]
    ids = parts.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(models.encode_prompts(parts, prompts), resized(ids).last_hidden_state)


@pytest.mark.parametrize("taken", ["<|startoftext|>", "<|EndOfText|>"])
def test_token_of_the_vocabulary_is_refused_and_nothing_changes(parts, taken):
    size = len(parts.tokenizer)
    with pytest.raises(DasdError, match="already in the vocabulary"):
        models.attach_tokens(parts, ["<satellite>", taken], torch.zeros(2, 32))
    assert (len(parts.tokenizer), parts.tokens, parts.token_ids) == (size, None, {})
    models.add_domain_tokens(parts, parts.config.domains)
    with pytest.raises(DasdError, match="already have the tokens <satellite>, <xray>"):
        models.add_domain_tokens(parts, parts.config.domains)


def test_a_domain_without_token_is_passed_over(parts):
    size, (satellite, xray) = len(parts.tokenizer), parts.config.domains
    assert models.add_domain_tokens(parts, [parts.config.source]) == {} == parts.token_ids
    bare = dataclasses.replace(satellite, token=None, initial_word="")
    assert models.add_domain_tokens(parts, [bare, xray]) == {"<xray>": size}
    assert len(parts.tokens.weight) == 1


# LoRA


@pytest.mark.parametrize("convolutions", ["all", "mid", "none"])
def test_lora_is_on_attention_and_the_chosen_convolutions(parts, convolutions):
    layers = [n for n, m in parts.unet.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    attention = {n for n in layers if n.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))}
    resnet = {n for n in layers if n.endswith((".conv1", ".conv2"))}
    middle = {n for n in resnet if n.startswith("mid_block.")}
    assert len(middle) == 4 < len(resnet) and attention
    wanted = attention | {"all": resnet, "mid": middle, "none": set()}[convolutions]
    models.add_lora(parts.unet, LoraSettings(rank=2, convolutions=convolutions))
    ending = ".lora_A.default"
    assert {n.removesuffix(ending) for n, _ in parts.unet.named_modules() if n.endswith(ending)} == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lora_is_float32_on_a_half_precision_unet_and_in_its_mode(tiny_config, dtype):
    parts = models.load_parts(tiny_config, unet_dtype=dtype)
    models.add_lora(parts.unet, LoraSettings(dropout=0.5))
    assert not any(m.training for m in parts.unet.modules())
    groups = models.trainable_parameters(parts)
    assert {p.dtype for p in groups["lora"]} == {torch.float32} and groups["tokens"] == []
    assert {p.dtype for p in parts.unet.parameters() if not p.requires_grad} == {dtype}


def test_lora_off_is_the_base_and_on_again_is_as_before(adapted, tiny_config):
    base = predicted(models.load_parts(tiny_config))
    trained = [p.requires_grad_(False) for p in models.trainable_parameters(adapted)["lora"]]
    before = predicted(adapted)
    assert not torch.allclose(before, base, atol=1e-3)
    with models.lora_disabled(adapted):
        with models.lora_disabled(adapted):
            pass
        assert torch.equal(predicted(adapted), base)
    with pytest.raises(RuntimeError), models.lora_disabled(adapted):
        raise RuntimeError
    assert torch.equal(predicted(adapted), before)
    assert not any(p.requires_grad for p in trained)


def test_merged_lora_is_the_same_function_and_leaves_no_trace(adapted):
    adapted.unet.eval()
    weights, before = {n: p.clone() for n, p in all_weights(adapted).items()}, predicted(adapted)
    with models.lora_disabled(adapted):
        base = predicted(adapted)
        with models.lora_merged(adapted):  # nothing is on, so nothing is merged
            assert torch.equal(predicted(adapted), base)
    assert (before - base).abs().max() > 1e-2
    flags = [p.requires_grad for p in adapted.unet.parameters()]
    merged, full = models.lora_merged(adapted), torch.autocast("cpu", enabled=False)
    with torch.autocast("cpu", torch.bfloat16), merged, full:  # merging computes in full precision anyway
        torch.testing.assert_close(predicted(adapted), before, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError), models.lora_merged(adapted):
        raise RuntimeError
    with models.lora_merged(adapted) as switch:
        merged = predicted(adapted)
        for _ in range(2):
            switch(False)
            assert torch.equal(predicted(adapted), base)
            switch(True)
            assert torch.equal(predicted(adapted), merged)
        switch(False)
    assert all(torch.equal(p, weights[n]) for n, p in all_weights(adapted).items())
    assert [p.requires_grad for p in adapted.unet.parameters()] == flags
    assert torch.equal(predicted(adapted), before)


def test_a_rank_that_no_layer_can_have_is_refused(parts):
    for rank in (0, 33):
        with pytest.raises(DasdError, match=f"rank is {rank}; a LoRA of this UNet needs 1 to 32"):
            models.add_lora(parts.unet, LoraSettings(rank=rank))
    models.add_lora(parts.unet, LoraSettings(rank=32))


def test_plain_and_fused_attention_agree(tiny_config):
    results = []
    for attention in ("plain", "fused"):
        parts = models.load_parts(tiny_config.replace(attention=attention))
        kinds = {type(p).__name__ for p in parts.unet.attn_processors.values()}
        assert kinds == {"AttnProcessor" if attention == "plain" else "AttnProcessor2_0"}
        inside = parts.text_encoder.config._attn_implementation
        assert inside == {"plain": "eager", "fused": "sdpa"}[attention]
        text = models.encode_prompts(parts, ["a river", "", "a portrait"])
        eps, _ = models.unet_pass(parts.unet, *noisy_batch()[:2], text)
        results.append(torch.cat([eps.flatten(), text.flatten()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


# what trains


def test_what_was_unfrozen_elsewhere_is_frozen_again(adapted):
    modules = (adapted.text_encoder, adapted.unet, adapted.vae, adapted.tokens)
    for module in modules:
        module.requires_grad_(True)
    for vae in (adapted.vae, None):  # not in memory while training
        adapted.vae = vae
        new = {id(p) for group in models.trainable_parameters(adapted).values() for p in group}
        assert {id(p) for m in modules for p in m.parameters() if p.requires_grad} == new


# the passes


def plain_pass(unet, latents, timesteps, text):
    features = []
    hook = unet.mid_block.register_forward_hook(lambda _m, _a, output: features.append(output))
    eps = unet(latents, timesteps, encoder_hidden_states=text).sample
    hook.remove()
    return eps, features[0]


def loss_and_gradients(run, unet, latents, timesteps, text):
    """Return eps, mid, loss, and the gradients of the inputs and of every weight that has one."""
    unet.zero_grad()
    latents, text = latents.clone().requires_grad_(), text.clone().requires_grad_()
    eps, mid = run(unet, latents, timesteps, text)
    eps = eps[:2]
    loss = eps.float().square().mean() + (mid[:2].float().mean(0) - mid[2:].float().mean(0)).square().sum()
    loss.backward()
    weights = [p.grad.clone() for p in unet.parameters() if p.grad is not None]
    return [eps, mid, loss, latents.grad, text.grad, *weights]


LAYERS = ("down.0", "down.1", "mid", "up.0", "up.1")


@pytest.mark.parametrize("layer", LAYERS)
def test_after_any_block_the_source_stops_and_nothing_else_changes(parts, layer):
    batch, seen, inner = noisy_batch(), {}, parts.unet
    blocks = dict(zip(LAYERS, [*inner.down_blocks, inner.mid_block, *inner.up_blocks], strict=True))
    for name, block in blocks.items():  # a down block returns its skips too
        block.register_forward_hook(
            lambda _m, _a, x, name=name: seen.update({name: x if "down" not in name else x[0]})
        )
    eps, features = models.unet_pass(inner, *batch, num_target=2, layer=layer)
    rows = [len(seen[name]) for name in LAYERS]
    assert rows == [3 if i <= LAYERS.index(layer) else 2 for i in range(len(LAYERS))]
    whole, _ = plain_pass(inner, *batch)
    torch.testing.assert_close(features, seen[layer], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(eps, whole[:2], rtol=1e-4, atol=1e-5)


def test_no_hook_stays_after_an_error(parts):
    latents, timesteps, text = noisy_batch()
    with pytest.raises(RuntimeError):
        models.unet_pass(parts.unet, latents, timesteps, text[..., :-1], num_target=1)
    assert not any(block._forward_pre_hooks for block in parts.unet.up_blocks)
    assert not parts.unet.mid_block._forward_hooks
    with pytest.raises(DasdError, match=r"no block 'up\.9' to align at; it has down\.0, .*mid, .*up\.1"):
        models.unet_pass(parts.unet, *noisy_batch(), layer="up.9")


def compare_passes(parts, tolerance, latent=8):
    """Assert that half a pass for the last row gives the plain forward's values and gradients."""
    half_pass = functools.partial(models.unet_pass, num_target=2)
    half, whole = (
        loss_and_gradients(each, parts.unet, *noisy_batch(latent)) for each in (half_pass, plain_pass)
    )
    assert len(half) == len(whole) > 10
    for ours, theirs in zip(half, whole, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("latent", [8, 7])  # 7: the up blocks get their sizes
def test_half_a_pass_equals_the_plain_forward_with_lora(adapted, checkpointing, latent):
    adapted.unet.train()
    assert adapted.config.lora.dropout == 0  # it would differ between the two calls
    if checkpointing:
        adapted.unet.enable_gradient_checkpointing()
    compare_passes(adapted, 1e-5, latent)


def test_half_a_pass_equals_the_plain_forward_without_lora_and_in_bfloat16(adapted):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare_passes(adapted, 0.03)
    adapted.unet.disable_adapters()
    adapted.unet.requires_grad_(True)
    compare_passes(adapted, 1e-5)


def test_a_wrapped_unet_is_called_itself(parts):
    calls, batch = [], noisy_batch()
    wrapper = torch.nn.Module()
    wrapper.module = parts.unet
    wrapper.forward = lambda *args, **kwargs: calls.append(args) or parts.unet(*args, **kwargs)
    eps, _ = models.unet_pass(wrapper, *batch, num_target=2)
    assert torch.equal(eps, models.unet_pass(parts.unet, *batch, num_target=2)[0])
    assert len(calls) == 1


# prompts


def test_condition_is_that_of_diffusers(parts, base_dir):
    pipeline = StableDiffusionPipeline.from_pretrained(base_dir, safety_checker=None)
    prompts = ["an aerial view of a harbor", "", "x " * 100]
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
        assert torch.equal(models.encode_prompts(parts, prompts), theirs)


def test_a_cut_prompt_is_warned_of_once_and_what_is_lost_named(parts, caplog):
    fits = "lungs " * 75
    with caplog.at_level(logging.WARNING, logger="dasd_utils.models"):
        models.encode_prompts(parts, ["", fits, fits + "satellite village"])
        models.encode_prompts(parts, [fits + "satellite village", "heart"])
    assert len(caplog.records) == 1
    assert "79 tokens is cut to 77. Lost: 'satellite village'" in caplog.text


def test_cached_texts_are_looked_up_and_equal(parts, monkeypatch):
    prompts = ["a river", "", "a portrait", "a river"]
    with torch.no_grad():
        fresh = models.encode_prompts(parts, prompts)
    models.add_domain_tokens(parts, parts.config.domains)
    models.cache_texts(parts, [*prompts, "a <SATELLITE> river"])  # what learns is encoded anew
    assert set(parts.text_cache) == set(prompts)
    with monkeypatch.context() as patch:
        patch.setattr(parts.text_encoder, "forward", lambda *a, **k: pytest.fail("encoded again"))
        with torch.no_grad():
            cached = models.encode_prompts(parts, prompts)
    torch.testing.assert_close(cached, fresh, rtol=1e-5, atol=1e-6)
    assert not cached.requires_grad
    with torch.no_grad():  # one unknown prompt: all are encoded
        assert models.encode_prompts(parts, ["a river", "a village"]).shape[0] == 2
    parts.text_cache.clear()
    monkeypatch.setattr(models, "MAX_CACHED_TEXTS", 2)
    models.cache_texts(parts, ["a", "b", "c"])
    assert not parts.text_cache
    models.cache_texts(parts, ["a", "b", "a"])
    assert set(parts.text_cache) == {"a", "b"}
