"""One image to sample: what each model is asked for it, and what it can be made again from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dasd_utils.config import Calibration, DomainConfig
from dasd_utils.guidance import ADAPTED, BASE, EMPTY, GIVEN, Term, rule


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

    def settings(self) -> dict[str, Any]:
        """Return what `generate` reports, from which the image can be made again."""
        return {
            "domain": self.domain.name if self.domain else None,
            "token": self.token,
            **_settings(self.calibration),
            **({} if self.rule == rule(self.calibration) else {"rule": [asdict(term) for term in self.rule]}),
            "seed": self.seed,
        }

    @property
    def alike(self) -> Any:
        """Return what jobs of one batch have in common."""
        return self.calibration, self.rule, self.adapted

    def asked(self, term: Term) -> str:
        """Return the model that a term asks: without an adapter the adapted model is the base."""
        return BASE if term.model == ADAPTED and not self.adapted else term.model

    def told(self, term: Term, empty: str) -> str:
        """Return the text that a term's model is told."""
        if term.prompt == EMPTY:
            return empty
        if term.prompt == GIVEN:
            return self.plain if self.asked(term) == BASE else self.prompt
        return (self.token or "") if self.asked(term) == ADAPTED else ""


def _settings(calibration: Calibration) -> dict[str, Any]:
    """What of a calibration decides the image."""
    values = asdict(calibration)
    if calibration.guidance != "decoupled":
        del values["domain_scale"]
    return values
