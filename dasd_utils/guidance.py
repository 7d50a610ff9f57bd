"""Guidance: which model is asked which prompt at each step, and how the answers become one.

eps = eps_0 + sum_i w_i (eps_i - eps_0), arXiv 2312.08195, for any number of branches and models.
Classifier-free guidance (arXiv 2207.12598), Domain Guidance (arXiv 2504.01521) and decoupled guidance are
settings of it.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dasd_utils.config import Calibration, DasdError, DomainConfig

BASE, ADAPTED = "base", "adapted"  # models; a learner of a pipeline has a name of its own
EMPTY, GIVEN, TOKEN = "empty", "given", "token"  # prompts: none, that of the image, its domain's token alone
Prediction = Callable[[Tensor, Tensor], Tensor]  # (latents, timestep) -> noise
# a number, or several: the first at pure noise, the last at the image, linearly between them
Weight = float | tuple[float, ...]
Computing = Callable[[], contextlib.AbstractContextManager]


@dataclass(frozen=True)
class Term:
    """One answer that guidance combines: whose, to what, and by how much it counts against the first."""

    model: str  # BASE, ADAPTED, or a learner's name
    prompt: str  # EMPTY, GIVEN or TOKEN
    weight: Weight = 0.0  # w_i; the first term's is what the others leave
    least: float | None = None  # lower weights count as this one


@dataclass(frozen=True)
class Branch:
    """A term with its text, for a batch."""

    text: Tensor  # (B, 77, d)
    model: str = ADAPTED


def rule(calibration: Calibration) -> tuple[Term, ...]:
    """Return the terms of a calibration's guidance.

    "cfg": the adapted model away from its own unconditional answer; "domain": away from the base's;
    "decoupled": the base, towards what the adapted model makes of no prompt (`domain_scale`) and towards what
    itself makes of the prompt (`guidance_scale`); "unconditional": the adapted model's answer to no prompt.
    As everywhere, the scale of the first two is 1 at least: less would ask for less than the prompt.
    """
    scale = calibration.guidance_scale
    rules = {
        "cfg": (Term(ADAPTED, EMPTY), Term(ADAPTED, GIVEN, scale, least=1.0)),
        "domain": (Term(BASE, EMPTY), Term(ADAPTED, GIVEN, scale, least=1.0)),
        "decoupled": (
            Term(BASE, EMPTY),
            Term(ADAPTED, TOKEN, calibration.domain_scale),
            Term(BASE, GIVEN, scale),
        ),
        "unconditional": (Term(ADAPTED, EMPTY),),
    }
    return rules[calibration.guidance]


def check_rule(terms: Sequence[Term], learners: Sequence[str] = ()) -> None:
    """Raise DasdError for what is no rule: other things than terms, unknown models or prompts, weights that
    are no finite numbers, and learners named as the base or the adapted model is."""
    if set(learners) & {BASE, ADAPTED}:
        raise DasdError(f"A learner is named {BASE!r} or {ADAPTED!r}, as the pipeline's own models are.")
    if not isinstance(terms, Sequence) or not terms or not all(isinstance(term, Term) for term in terms):
        raise DasdError(f"Guidance is a name or a sequence of terms, at least one, not {terms!r}.")
    models = (BASE, ADAPTED, *learners)
    for term in terms:
        if term.model not in models:
            raise DasdError(f"A guidance term asks the model {term.model!r}. Models: {', '.join(models)}.")
        if term.prompt not in (EMPTY, GIVEN, TOKEN):
            raise DasdError(f"A guidance term asks for the prompt {term.prompt!r}. "
                            f"Prompts: {EMPTY}, {GIVEN}, {TOKEN}.")  # fmt: skip
        if term.prompt == TOKEN and term.model != ADAPTED:
            raise DasdError(f"A guidance term asks {term.model!r} for the token, which the adapted model "
                            "alone has learned.")  # fmt: skip
        given = term.weight if isinstance(term.weight, tuple) else (term.weight,)
        given += () if term.least is None else (term.least,)
        if term.weight == () or not all(map(_is_finite, given)):
            raise DasdError(f"A guidance term has the weight {term.weight!r} and the least {term.least!r}; a "
                            "weight is a finite number or a tuple of them.")  # fmt: skip


def _is_finite(number: Any) -> bool:
    return isinstance(number, numbers.Real) and math.isfinite(number)


def takes_negative(terms: Sequence[Term]) -> bool:
    """Return whether a rule leads away from the empty prompt, whose place a negative one can take."""
    return terms[0].prompt == EMPTY and len(terms) > 1


def weights(terms: Sequence[Term], done: float = 0.0) -> list[float]:
    """Return the weight of every term but the first where `done` of the noise is gone, 0 to 1."""
    now = ((_at(term.weight, done), term.least) for term in terms[1:])
    return [weight if least is None else max(weight, least) for weight, least in now]


def _at(weight: Weight, done: float) -> float:
    if not isinstance(weight, tuple):
        return float(weight)
    return float(np.interp(done, np.linspace(0, 1, len(weight)), weight))


def combine(found: Sequence[Tensor | None], wanted: Sequence[float]) -> Tensor:
    """Return eps_0 + sum_i w_i (eps_i - eps_0); an answer that does not count may be None."""
    first, *others = found
    counted = [(each, weight) for each, weight in zip(others, wanted, strict=True) if each is not None]
    if first is None:  # the weights sum to 1
        return sum(weight * each for each, weight in counted)
    return first + sum((weight * (each - first) for each, weight in counted), torch.zeros_like(first))


def classifier_free_guidance(eps_uncond: Tensor, eps_cond: Tensor, guidance_scale: float) -> Tensor:
    """Return eps_uncond + w (eps_cond - eps_uncond), arXiv 2207.12598: w 1 is the condition alone."""
    return combine([eps_uncond, eps_cond], [guidance_scale])


def guided_prediction(
    choose: Callable[[str], Any],
    branches: Sequence[Branch],
    wanted: Callable[[Tensor], Sequence[float]],
    computing: Computing = contextlib.nullcontext,
) -> Prediction:
    """Return the function that predicts the noise: branches of one model in one batch, those of weight 0 not
    at all.

    choose(model): the network, ready to answer as that model. wanted(timestep): the weights of all branches
    but the first. `computing` makes the context of the network's precision; guidance and scheduler stay
    outside, in fp32.
    """

    def run(latents: Tensor, timestep: Tensor, model: str, rows: Sequence[int]) -> Sequence[Tensor]:
        unet = choose(model)
        text, copies = torch.cat([branches[i].text for i in rows]), torch.cat([latents] * len(rows))
        with computing():
            eps = unet(copies.to(unet.dtype), timestep, encoder_hidden_states=text).sample.float()
        return eps.chunk(len(rows))

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        now = wanted(timestep)
        shares = [1 - sum(now), *now]
        groups: dict[str, list[int]] = {}
        for i in (i for i, share in enumerate(shares) if share != 0):
            groups.setdefault(branches[i].model, []).append(i)
        found: list[Tensor | None] = [None] * len(branches)
        for model, rows in groups.items():
            for i, eps in zip(rows, run(latents, timestep, model, rows), strict=True):
                found[i] = eps
        return combine(found, now)

    return predict


# One image to sample: what each model is asked for it, and what it can be made again from.


@dataclass(frozen=True)
class Job:
    """One image to sample."""

    prompt: str  # with its token
    plain: str  # as the base is told it
    domain: DomainConfig | None
    calibration: Calibration
    rule: tuple[Term, ...]  # of its guidance
    adapted: bool  # LoRA on
    token: str | None  # put in by the adapter
    seed: int
    index: int  # of the image among those of its prompt
    learners: tuple[tuple[str, str], ...] = ()  # name and run folder of each that the rule asks

    def settings(self) -> dict[str, Any]:
        """Return what `generate` reports, from which the image can be made again."""
        used = self.calibration.settings()
        if self.rule != rule(self.calibration):  # its own terms, in the place of a kind and its scales
            unused = ("guidance", "guidance_scale", "domain_scale")
            used = {name: value for name, value in used.items() if name not in unused}
            used["rule"] = [asdict(term) for term in self.rule]
        if self.learners:
            used["learners"] = dict(self.learners)
        name = self.domain.name if self.domain else None
        return {"domain": name, "token": self.token, **used, "seed": self.seed}

    @property
    def alike(self) -> Any:
        """Return what jobs of one batch have in common."""
        return self.calibration, self.rule, self.adapted

    def asked(self, term: Term) -> str:
        """Return the model that a term asks: without an adapter the adapted model is the base."""
        return BASE if term.model == ADAPTED and not self.adapted else term.model

    def told(self, term: Term, empty: str) -> str:
        """Return the text that a term's model is told."""
        if term.prompt == GIVEN:  # no other model knows the adapter's token
            return self.prompt if self.asked(term) == ADAPTED or not self.adapted else self.plain
        if term.prompt == TOKEN and self.asked(term) == ADAPTED:
            return self.token or ""
        return empty
