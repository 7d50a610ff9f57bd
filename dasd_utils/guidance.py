"""Guidance: which model predicts the noise for which prompt, and how the predictions are combined.

eps = eps_0 + sum_i w_i (eps_i - eps_0), arXiv 2312.08195. Special cases: classifier-free guidance (arXiv
2207.12598), Domain Guidance (arXiv 2504.01521) and decoupled guidance.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dasd_utils.config import WHOLE, Calibration, DasdError, DomainConfig

BASE, ADAPTED = "base", "adapted"  # models; a learner that is added to a pipeline has a name of its own
EMPTY, GIVEN, TOKEN = "empty", "given", "token"  # prompts: none, the image's own, its domain's token alone
Prediction = Callable[[Tensor, Tensor], Tensor]  # (latents, timestep) -> noise
# one number, or several: the first applies at pure noise, the last at the image, linear in between
Weight = float | tuple[float, ...]


@dataclass(frozen=True)
class Term:
    """One noise prediction of a guidance rule: by which model, for which prompt, with which weight."""

    model: str  # BASE, ADAPTED, or a learner's name
    prompt: str  # EMPTY, GIVEN or TOKEN
    weight: Weight = 0.0  # w_i; the first term's is what the others leave of 1
    least: float | None = None  # lower bound of the weight


@dataclass(frozen=True)
class Branch:
    """A term with its encoded prompts, for a batch."""

    text: Tensor  # (B, 77, d)
    model: str = ADAPTED


def rule(calibration: Calibration) -> tuple[Term, ...]:
    """Return the terms of a calibration's guidance.

    "cfg": from the adapted model's unconditional prediction to its prediction for the prompt; "domain": the
    same from the base's unconditional prediction; "decoupled": from the base's unconditional prediction
    towards the adapted model's for the token (`domain_scale`) and the base's for the prompt
    (`guidance_scale`); "unconditional": the adapted model's prediction for the empty prompt.
    The scale of the first two is at least 1: below 1 the prompt would count for less than itself.
    """
    scale, domain_scale = calibration.guidance_scale, calibration.domain_scale
    rules = {
        "cfg": (Term(ADAPTED, EMPTY), Term(ADAPTED, GIVEN, scale, least=1.0)),
        "domain": (Term(BASE, EMPTY), Term(ADAPTED, GIVEN, scale, least=1.0)),
        "decoupled": (Term(BASE, EMPTY), Term(ADAPTED, TOKEN, domain_scale), Term(BASE, GIVEN, scale)),
        "unconditional": (Term(ADAPTED, EMPTY),),
    }
    return rules[calibration.guidance]


def check_rule(terms: Sequence[Term], learners: Iterable[str] = ()) -> None:
    """Raise DasdError for anything but valid terms of the pipeline's own models and its learners."""
    if not isinstance(terms, Sequence) or not terms or not all(isinstance(term, Term) for term in terms):
        raise DasdError(f"Guidance is a name or a sequence of terms, at least one, not {terms!r}.")
    models = (BASE, ADAPTED, *learners)
    for term in terms:
        if term.model not in models:
            raise DasdError(f"A guidance term uses the model {term.model!r}. Models: {', '.join(models)}.")
        if term.prompt not in (EMPTY, GIVEN, TOKEN):
            raise DasdError(f"The prompt of a term is {term.prompt!r}. Prompts: {EMPTY}, {GIVEN}, {TOKEN}.")
        if term.prompt == TOKEN and term.model != ADAPTED:
            raise DasdError(f"A term gives the token to {term.model!r}; the adapted model alone knows it.")


def weights(terms: Sequence[Term], done: float = 0.0, interval: tuple[float, float] = WHOLE) -> list[float]:
    """Return the weights of all terms but the first, when a share `done` of the timesteps is behind.

    Outside the guidance interval (arXiv 2404.07724) only the last term counts.
    """
    if not interval[0] <= min(max(done, 0.0), 1.0) <= interval[1]:
        return [0.0] * (len(terms) - 2) + [1.0]
    found = []
    for term in terms[1:]:
        values = np.atleast_1d(term.weight)
        weight = float(np.interp(done, np.linspace(0, 1, len(values)), values))
        found.append(weight if term.least is None else max(weight, term.least))
    return found


def combine(predictions: Sequence[Tensor | None], weights: Sequence[float]) -> Tensor:
    """Return eps_0 + sum_i w_i (eps_i - eps_0); a prediction without a share may be None."""
    first, *others = predictions
    counted = [(eps, weight) for eps, weight in zip(others, weights, strict=True) if eps is not None]
    if first is None:  # the weights sum to 1
        return sum(weight * eps for eps, weight in counted)
    return first + sum((weight * (eps - first) for eps, weight in counted), torch.zeros_like(first))


def guided_prediction(
    network_of: Callable[[str], Any],
    branches: Sequence[Branch],
    weights_at: Callable[[Tensor], Sequence[float]],
    computing: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> Prediction:
    """Return the function that predicts the noise; the branches of a model are one batch.

    network_of(model): the network, switched to that model. weights_at(timestep): of all branches but the
    first. computing: makes the context of the network's precision; guidance itself stays in fp32.
    """

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        weights = weights_at(timestep)
        groups: dict[str, list[int]] = {}  # model -> places of its branches
        for i, share in enumerate([1 - sum(weights), *weights]):
            if share != 0:  # else it is not computed
                groups.setdefault(branches[i].model, []).append(i)
        predictions: list[Tensor | None] = [None] * len(branches)
        for model, places in groups.items():
            unet, text = network_of(model), torch.cat([branches[i].text for i in places])
            with computing():
                copies = latents.repeat(len(places), 1, 1, 1).to(unet.dtype)
                eps = unet(copies, timestep, encoder_hidden_states=text.to(unet.dtype)).sample.float()
            for i, part in zip(places, eps.chunk(len(places)), strict=True):
                predictions[i] = part
        return combine(predictions, weights)

    return predict


@dataclass(frozen=True)
class Job:
    """One image to sample: its prompt, settings and noise."""

    prompt: str  # with its token
    plain: str  # for the base, which knows no token
    domain: DomainConfig | None
    calibration: Calibration
    rule: tuple[Term, ...]  # of its guidance
    adapted: bool  # LoRA on
    token: str | None  # put in by the adapter
    seed: int
    index: int = 0  # of the image among those of its prompt
    negative: str = ""  # replaces the empty prompt
    learners: tuple[tuple[str, str], ...] = ()  # name and run folder of each that the rule uses

    def settings(self) -> dict[str, Any]:
        """Return what `generate` reports: what makes the image again, with prompt, index and `adapter`."""
        used = self.calibration.settings()
        if self.rule != rule(self.calibration):  # its own terms replace the kind of guidance and its scales
            for unused in ("guidance", "guidance_scale", "domain_scale"):
                used.pop(unused, None)
            used["rule"] = [asdict(term) for term in self.rule]
        if self.learners:
            used["learners"] = dict(self.learners)
        used |= {"negative_prompt": self.negative} if self.negative else {}
        name = self.domain.name if self.domain else None
        return {"domain": name, "token": self.token, **used, "seed": self.seed}

    @property
    def batch_key(self) -> Any:
        """Return what the jobs of one batch have in common."""
        return self.calibration, self.rule, self.adapted

    def model_for(self, term: Term) -> str:
        """Return the model that predicts a term: the base in the place of an adapter that is off."""
        return BASE if term.model == ADAPTED and not self.adapted else term.model

    def prompt_for(self, term: Term, empty: str) -> str:
        """Return the text of a term; `empty` stands for the empty prompt."""
        if term.prompt == GIVEN:  # no other model knows the adapter's token
            return self.prompt if self.model_for(term) == ADAPTED or not self.adapted else self.plain
        if term.prompt == TOKEN and self.model_for(term) == ADAPTED:
            return self.token or ""
        return empty
