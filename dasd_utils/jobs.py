"""One image to sample: what each model is asked for it, and what it can be made again from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dasd_utils.config import Calibration, DomainConfig
from dasd_utils.guidance import ADAPTED, BASE, GIVEN, TOKEN, Term, rule


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
