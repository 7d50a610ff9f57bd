"""Prompt to domain, or none: cosine similarities in the text encoder's pooled space, and one threshold."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dasd_utils.config import DasdError, DomainConfig, check_types, read_json, resolve, with_token

# Prompts of no domain: their mean estimates what all CLIP text vectors have in common.
BACKGROUND = (
    "a painting", "an oil painting of a landscape", "a watercolour of a tree", "a portrait of a young man",
    "a still life with a jug", "a boat on a lake", "a cow in the grass", "a small bird", "a loaf of bread",
    "a slice of pizza", "people in a market", "a car in the street", "a living room with a lamp",
    "a colourful pattern", "a drawing of a house", "a photo of a friend")  # fmt: skip
Domains = Sequence[DomainConfig]


def token_domain(prompt: str, domains: Domains) -> DomainConfig | None:
    """Return the domain whose token is in the prompt, in upper or lower case, or None; DasdError for two."""
    found = [d for d in domains if d.token and d.token.lower() in prompt.lower()]
    if len(found) > 1:
        raise DasdError(f"The prompt {prompt!r} holds the tokens of several domains, "
                        f"{', '.join(d.token for d in found)}: leave one.")  # fmt: skip
    return found[0] if found else None


def check_prompts(prompt: str | Sequence[str]) -> list[str]:
    """Return a prompt, or several, as a list; DasdError for none, and for one that is empty or no text."""
    check_types(prompt=(prompt, Iterable))
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise DasdError("There is no prompt: give one text or a list of at least one.")
    for place, prompt in enumerate(prompts, start=1):
        where = f"Prompt {place} of {len(prompts)}" if len(prompts) > 1 else "The prompt"
        if not isinstance(prompt, str):
            raise DasdError(f"{where} is {prompt!r:.200}, not a text.")
        if not prompt.strip():
            raise DasdError(f"{where} is empty: write what the picture should show.")
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # of an argument that is no UTF-8
            raise DasdError(f"{where} is {prompt!r:.200}, which is no Unicode text: write it in UTF-8.")
    return prompts


@torch.no_grad()
def embed_prompts(text_encoder: Any, tokenizer: Any, prompts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Return unit vectors (n, d): the last hidden state, after the final norm, at the first end token.

    It is the first position to see all of the prompt: the encoder is causal. Its own `pooler_output` takes,
    with the config of Stable Diffusion 1.5, the largest id: an added token.
    """
    vectors = []
    for start in range(0, len(prompts), batch_size):
        few = list(prompts[start : start + batch_size])
        ids = tokenizer(few, padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden = text_encoder(ids.to(text_encoder.device)).last_hidden_state  # (B, 77, d)
        end = (ids == tokenizer.eos_token_id).int().argmax(dim=1)
        vectors.append(hidden[torch.arange(len(ids)), end.to(hidden.device)].float())
    return F.normalize(torch.cat(vectors), dim=1).cpu()


class DomainClassifier:
    """Compares a prompt with each domain's descriptions and learned token; below a threshold: none.

    All cosines between CLIP texts are high, because the vectors share a large common part. The mean of
    `BACKGROUND` estimates it; it is subtracted first, so that 0 means "like any prompt".
    """

    def __init__(
        self, text_encoder: Any, tokenizer: Any, domains: Domains, threshold: float | None = None
    ) -> None:
        """Embed the prototypes of each domain. `threshold`: cosine, or None until `fit_threshold`."""
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.domains, self.threshold = tuple(domains), threshold
        self.centre = embed_prompts(text_encoder, tokenizer, BACKGROUND).mean(dim=0, keepdim=True)  # (1, d)
        self.prototypes = {d.name: self._centred(self.prototype_texts(d)) for d in self.domains}

    def prototype_texts(self, domain: DomainConfig) -> list[str]:
        """Return a domain's descriptions, and each of them behind its token once it is learned."""
        texts = list(domain.descriptions)
        if domain.token in self.tokenizer.get_added_vocab():  # alone it may mean anything
            texts += [with_token(text, domain.token) for text in domain.descriptions] or [domain.token]
        if not texts:
            raise DasdError(f"The domain {domain.name} has neither descriptions nor a learned token to "
                            "compare a prompt with: give it `descriptions` in the config.")  # fmt: skip
        return texts

    def _centred(self, prompts: Sequence[str]) -> Tensor:
        return F.normalize(embed_prompts(self.text_encoder, self.tokenizer, prompts) - self.centre, dim=1)

    def similarities(self, prompts: Sequence[str]) -> Tensor:
        """Return cosines (n, domains): the mean over the prototypes of each domain."""
        vectors = self._centred(prompts)
        return torch.stack([(vectors @ p.T).mean(dim=1) for p in self.prototypes.values()], dim=1)

    def fit_threshold(self, prompts: Sequence[dict[str, Any]]) -> float:
        """Set and return the threshold of highest accuracy on rows {"prompt", "domain"}.

        Of equally good ones it is the middle of the widest gap between two scores.
        """
        scores, best = self.similarities(check_prompts([row["prompt"] for row in prompts])).max(dim=1)
        labels = [self.label(row) for row in prompts]
        hits = [self.domains[i].name == label for i, label in zip(best.tolist(), labels, strict=True)]
        rows = list(zip(scores.tolist(), hits, (label is None for label in labels), strict=True))
        ordered = sorted({score for score, *_ in rows})
        # narrow at both ends, so that a gap between two scores comes first
        ordered = [ordered[0] - 1e-3, *ordered, ordered[-1] + 1e-3]

        def quality(gap: tuple[float, float]) -> tuple[int, float]:
            right = sum(hit if score >= gap[1] else none for score, hit, none in rows)
            return right, gap[1] - gap[0]

        low, high = max(itertools.pairwise(ordered), key=quality)
        self.threshold = (low + high) / 2
        return self.threshold

    def label(self, row: dict[str, Any]) -> str | None:
        """Return the label of a row; that of a domain which the classifier does not know counts as none."""
        return row["domain"] if row["domain"] in self.prototypes else None

    def classify(self, prompt: str | Sequence[str]) -> dict[str, Any] | list[dict[str, Any]]:
        """Return {"best_domain", "best_score", "all_similarities", "suggested_prompt"}, a list for a list.

        `best_domain` is None below the threshold, and the suggested prompt is then the prompt itself.
        A prompt that already holds a token belongs to that domain, with score 1, and stays as it is.
        """
        prompts = check_prompts(prompt)
        if self.threshold is None:
            raise DasdError("The classifier has no threshold yet: call fit_threshold(prompts) first.")
        results = list(map(self._decide, prompts, self.similarities(prompts).tolist()))
        return results[0] if isinstance(prompt, str) else results

    def _decide(self, prompt: str, cosines: list[float]) -> dict[str, Any]:
        scores = dict(zip(self.prototypes, cosines, strict=True))
        by_token = token_domain(prompt, self.domains)
        if by_token:
            scores[by_token.name] = 1.0
        best = by_token or max(self.domains, key=lambda d: scores[d.name])
        found = by_token is not None or scores[best.name] >= self.threshold
        return {
            "best_domain": best.name if found else None,
            "best_score": scores[best.name],
            "all_similarities": scores,
            "suggested_prompt": with_token(prompt, best.token) if found else prompt,
        }


def load_prompts(path: str | Path) -> list[dict[str, Any]]:
    """Read rows {"prompt": str, "domain": name or None}; DasdError for a file of another form."""
    path = resolve(path)
    rows = read_json(path, "The prompt file")
    fields = {"prompt", "domain"}
    if not isinstance(rows, list) or not all(isinstance(r, dict) and fields <= set(r) for r in rows):
        raise DasdError(f'{path} must be a JSON list of {{"prompt": text, "domain": name or null}}.')
    return rows


def accuracy(
    classifier: DomainClassifier, prompts: Sequence[dict[str, Any]]
) -> tuple[float, list[list[int]], list[dict[str, Any]]]:
    """Return (share of right answers, confusion matrix, rows) on rows {"prompt", "domain"}.

    The matrix counts labels (row) by answers (column), none last; rows have "answer", "score", "right" too.
    """
    names = [*classifier.prototypes, None]
    matrix = [[0] * len(names) for _ in names]
    rows = []
    answers = classifier.classify([row["prompt"] for row in prompts])
    for row, answer in zip(prompts, answers, strict=True):
        found, label = answer["best_domain"], classifier.label(row)
        matrix[names.index(label)][names.index(found)] += 1
        rows.append({**row, "answer": found, "score": answer["best_score"], "right": found == label})
    return sum(row["right"] for row in rows) / len(rows), matrix, rows
