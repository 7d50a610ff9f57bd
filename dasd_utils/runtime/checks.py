"""What users give, checked: names, types, JSON files and paths, and the error that says what is wrong."""

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ABOVE = Path(__file__).resolve().parents[2]
# relative paths of a config start at the repository, of a package installed without it at the present folder
ROOT = _ABOVE if (_ABOVE / "pyproject.toml").is_file() else Path.cwd()


class DasdError(ValueError):
    """An error that the user can fix: the message says what is wrong, where, and what to do."""


def check_choice(what: str, value: Any, known: Iterable[str]) -> None:
    """Raise DasdError, naming the nearest, for a value that is none of the known."""
    if value not in [*known]:
        raise DasdError(f"There is no {what} {value!r}. {nearest(value, known)}")


def nearest(name: object, known: Iterable[str]) -> str:
    """Return what an error adds: the known name nearest to the one given, or all of them."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}?" if match else f"Known: {', '.join(sorted(known))}."


def check_types(**given: tuple[Any, Any]) -> None:
    """Raise DasdError where an argument of a published function, name=(value, type), is of another type."""
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise DasdError(f"{name} is {value!r:.200}; it must be a {getattr(kind, '__name__', kind)}.")


def read_json(path: str | Path, what: str) -> Any:
    """Return the value in a JSON file; DasdError for one that is unreadable, no JSON, or has a key twice."""
    check_types(path=(path, str | os.PathLike))
    found = path if os.path.exists(path) else ROOT / path  # a notebook's current folder is not the repository
    try:
        return json.loads(Path(found).read_bytes(), object_pairs_hook=unique_keys)
    except OSError as error:
        raise DasdError(f"{what} cannot be read from {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        syntax = " JSON has double quotes, no comments, and no comma behind the last entry."
        advice = {json.JSONDecodeError: syntax, UnicodeDecodeError: " Save it as UTF-8."}.get(type(error), "")
        raise DasdError(f"{what} {path} is no JSON: {str(error).rstrip('.')}.{advice}") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of a JSON text's keys and values; ValueError for a key that stands twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for name in values if sum(name == other for other, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return values


def resolve(path: str | Path) -> Path:
    """Return an absolute path, a relative one from ROOT on; DasdError for a path that no file can have."""
    check_types(path=(path, str | os.PathLike))
    if not str(path).strip():
        raise DasdError("A path is empty: name a file or a folder.")
    try:
        found = ROOT / Path(path).expanduser()
        found.exists()
        return found.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise DasdError(f"The path {str(path)!r:.200} cannot be used: {reason}.") from None


def portable(path: Path) -> str:
    """Return a path inside ROOT relative to it, as configs have them; another one absolute."""
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)


def is_pinned(revision: str | None) -> bool:
    """Return whether a hub revision is a commit hash: a branch, or none, may hold other files tomorrow."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None
