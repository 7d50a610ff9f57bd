"""One optimiser step: groups, rates, clipping, accumulation, token norm, moving average, precision."""

import functools
import sys
import types

import diffusers
import pytest
import torch
from synthetic import make_batch, make_parts

from dasd_utils import losses, models, training
from dasd_utils.config import DasdError
from dasd_utils.runtime import processes


@pytest.fixture
def make(tiny_config):
    """Return `make(**changes) -> Updater` of the narrow config with these changes."""

    def build(**changes):
        config = tiny_config.replace(**changes)
        return training.Updater(config, make_parts(config))

    return build


@pytest.fixture
def updater(make):
    return make()


def backward(updater, seed: int = 0) -> torch.Tensor:
    """Do the backward pass of a batch and return all gradients in one row."""
    config = updater.config
    torch.manual_seed(seed)
    with updater.autocast():
        loss, _ = losses.DasdObjective(config)(updater.parts, make_batch(config, seed), config)
    updater.backward(loss)
    return torch.cat([p.grad.flatten() for p in updater.parameters])


def test_tokens_have_their_own_rate_and_no_decay(updater):
    lora, tokens = updater.optimizer.param_groups
    training = updater.config.training
    assert lora["weight_decay"] == training.weight_decay > 0 and tokens["weight_decay"] == 0
    assert tokens["params"] == [updater.parts.tokens.weight]
    assert set(lora["params"]) == set(models.trainable_parameters(updater.parts)["lora"])


def test_rates_are_a_function_of_the_step(make):
    updater = make(lr_scheduler="linear", lr_warmup_steps=2, max_train_steps=6)
    rates = [updater.set_rates(step) for step in range(7)]
    factors = [0, 0.5, 1, 0.75, 0.5, 0.25, 0]
    assert [r["learning_rate"] for r in rates] == pytest.approx([2e-3 * f for f in factors])
    assert [r["token_learning_rate"] for r in rates] == pytest.approx([5e-3 * f for f in factors])
    updater.set_rates(3)
    assert [g["lr"] for g in updater.optimizer.param_groups] == pytest.approx([1.5e-3, 3.75e-3])


def test_gradients_are_clipped_to_the_norm_that_is_returned_before(make):
    updater = make(max_grad_norm=0.01)
    before = backward(updater).norm().item()
    seen = []
    updater.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in updater.parameters]).norm().item())
    )
    norm, stepped = updater.update(finite_loss=True)
    assert stepped and norm == pytest.approx(before, rel=1e-5) and before > 0.01
    assert seen == pytest.approx([0.01], rel=1e-3)
    assert all(p.grad is None for p in updater.parameters)


def test_micro_batches_are_averaged(make, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")  # as `accelerate launch` does
    gradients = []
    for count in (1, 3):
        updater = make(gradient_accumulation_steps=count)
        updater.parts.unet.eval()
        gradients.append([backward(updater) for _ in range(count)][-1])
    at_once, in_three = gradients
    assert (at_once - in_three).norm() <= 1e-5 * at_once.norm()


def test_new_rows_keep_the_norm_of_their_initial_words(updater):
    vocabulary = updater.parts.text_encoder.get_input_embeddings().weight.clone()
    before = updater.parts.tokens.weight.detach().clone()
    updater.set_rates(1)
    backward(updater)
    updater.update(finite_loss=True)
    rows = updater.parts.tokens.weight.detach()
    assert rows.norm(dim=1).tolist() == pytest.approx(before.norm(dim=1).tolist(), rel=1e-5)
    directions = torch.nn.functional.cosine_similarity(rows, before)
    assert ((directions > 0.8) & (directions < 1 - 1e-7)).all()
    assert torch.equal(updater.parts.text_encoder.get_input_embeddings().weight, vocabulary)


@pytest.mark.parametrize("loss, gradient", [(False, 1.0), (True, float("nan")), (True, float("inf"))])
def test_nothing_moves_without_finite_loss_and_gradient(updater, loss, gradient):
    updater.set_rates(1)
    backward(updater)
    updater.parameters[0].grad[0, 0] = gradient
    before = [p.detach().clone() for p in updater.parameters]
    assert updater.update(finite_loss=loss)[1] is False
    assert all(torch.equal(b, p) for b, p in zip(before, updater.parameters, strict=True))
    assert all(p.grad is None for p in updater.parameters) and not updater.optimizer.state


def test_the_moving_average_is_in_only_while_asked_for(make):
    updater = make(ema_decay=0.5, lr_scheduler="constant")
    seen, average = [], None
    for step in range(4):
        updater.set_rates(step)
        backward(updater, step)
        updater.update(finite_loss=True)
        seen.append(updater.parts.tokens.weight.detach().clone())
        decay = min(0.5, (1 + step) / (10 + step))  # EMAModel warms up
        average = seen[0] if average is None else decay * average + (1 - decay) * seen[-1]
    with updater.evaluating():
        assert not updater.parts.unet.training
        inside = updater.parts.tokens.weight.detach().clone()
    torch.testing.assert_close(inside, average, rtol=1e-5, atol=1e-7)
    assert torch.equal(updater.parts.tokens.weight, seen[-1]) and not torch.equal(inside, seen[-1])
    updater.keep_average()
    assert torch.equal(updater.parts.tokens.weight, inside)


def test_precision_may_change_within_a_process(make):
    for precision, dtype in (("bf16", torch.bfloat16), ("no", torch.float32), ("bf16", torch.bfloat16)):
        updater = make(mixed_precision=precision)
        with updater.autocast():
            eps, mid = losses.predict_noise(updater.parts, make_batch(updater.config), with_source=True)
        assert eps.dtype == mid.dtype == dtype
        assert all(p.dtype == torch.float32 for p in updater.parameters)


def test_what_cannot_work_is_refused(tiny_config, monkeypatch):
    for name in ("cosinus", "piecewise_constant"):
        with pytest.raises(DasdError, match=name):
            tiny_config.replace(lr_scheduler=name)
    monkeypatch.setattr(processes, "count", lambda: 7)
    with pytest.raises(DasdError, match="7 processes"):
        training.check_training(tiny_config)


def test_a_frozen_unet_in_half_precision_trains_lora_in_full(tiny_config):
    config = tiny_config.replace(mixed_precision="bf16", half_weights=True)
    updater = training.Updater(config, training.setup_training(config))
    unet = updater.parts.unet
    before = {n: p.detach().clone() for n, p in unet.named_parameters() if not p.requires_grad}
    assert {p.dtype for p in before.values()} == {torch.bfloat16}
    assert {p.dtype for p in updater.parameters} == {torch.float32}
    backward(updater)
    assert all(p.grad.dtype == torch.float32 for p in updater.parameters)
    updater.set_rates(3)
    updater.update(finite_loss=True)
    assert all(torch.equal(p, before[n]) for n, p in unet.named_parameters() if n in before)


FASTER = [("gradient_checkpointing", "is_gradient_checkpointing"), ("compile_blocks", "_compiled_call_impl")]


@pytest.mark.parametrize("name, mark", FASTER)
def test_gradients_of_checkpointed_and_of_compiled_blocks_are_the_same(make, monkeypatch, name, mark):
    def marked(updater):
        return any(getattr(module, mark, None) for module in updater.parts.unet.modules())

    plain = diffusers.UNet2DConditionModel.compile_repeated_blocks
    eager = functools.partialmethod(plain, backend="eager")
    monkeypatch.setattr(diffusers.UNet2DConditionModel, "compile_repeated_blocks", eager)
    gradients = []
    for chosen in (False, True):
        updater = make(**{name: chosen}, dropout=0.3)
        updater.parts.unet.train()
        gradients.append(backward(updater))
        assert marked(updater) == chosen
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    updater.release()
    assert not marked(updater)


def test_8bit_adamw_is_that_of_bitsandbytes(make, monkeypatch):
    class AdamW8bit(torch.optim.AdamW):
        """Stands for the one of bitsandbytes, which is not installed here."""

    found = types.SimpleNamespace(AdamW8bit=AdamW8bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(optim=found))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", found)
    updater = make(optimizer="adamw_8bit")
    assert isinstance(updater.optimizer.optimizer, AdamW8bit)
    assert [group["weight_decay"] for group in updater.optimizer.param_groups] == [0.01, 0.0]
