"""Where the files of models are on this machine, and what a text that names a model means.

A text is, in this order: a name of the catalog; a path (it exists, or looks like one: `./x`, `/x`, `~/x`, `x.gguf`)
to a GGUF file or to a folder of safetensors; a repository on the hub (`organisation/name`), or a GGUF file of one
(`organisation/name:file.gguf`; the first part stands for all of a file that was split). Nothing is fetched here: what
is not on the disk has `path=None`.

Fetched files lie in `$DEEPSEEK_RESILIENT_MODELS`, or `~/.cache/deepseek-resilient/models`: a GGUF file of the catalog
by its own name, all others in a folder `organisation--name`. A file that is still being fetched ends in `.part`.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.models import CATALOG, Model

if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECTORY: Final = "DEEPSEEK_RESILIENT_MODELS"
PART: Final = ".part"
INDEX: Final = "model.safetensors.index.json"
REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_GGUF_OF: Final = re.compile(rf"({REPOSITORY.pattern}):((?:[A-Za-z0-9][\w.-]*/)*[A-Za-z0-9][\w.-]*\.gguf)")
_FIRST: Final = re.compile(r"(.*-)00001(-of-(\d{5})\.gguf)")


@dataclass(frozen=True, slots=True)
class Source:
    """What a text names.

    Attributes:
        name: the text, or the name in the catalog.
        path: the GGUF file or the folder, checked; None while it is not on this machine.
        repo: on the hub; empty for a path.
        model: its entry, where it is one of the catalog's.
    """

    name: str
    format: Literal["gguf", "safetensors"]
    path: Path | None
    repo: str = ""
    model: Model | None = None


def models_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where fetched files lie."""
    return Path(environ.get(DIRECTORY) or "~/.cache/deepseek-resilient/models").expanduser()


def place(model: Model, directory: Path) -> Path:
    """Where the file or the folder of a model lies once it has been fetched."""
    return directory / model.files[0] if model.files else folder(model.repo, directory)


def folder(repo: str, directory: Path) -> Path:
    """The same for a repository."""
    return directory / repo.replace("/", "--")


def gguf_of(text: str) -> tuple[str, list[str]] | None:
    """The repository and the file, all parts of one that was split, of `organisation/name:file.gguf`; else None."""
    found = _GGUF_OF.fullmatch(text)
    if found is None:
        return None
    first = _FIRST.fullmatch(found[2])
    count = int(first[3]) if first else 1
    return found[1], [f"{first[1]}{part:05}{first[2]}" for part in range(1, count + 1)] if first else [found[2]]


def present(model: Model, directory: Path | None = None) -> Path | None:
    """The model's file or folder if it is here and whole: fetched, or inside the package that brings it."""
    path = place(model, directory or models_directory())
    try:
        (check_gguf if model.format == "gguf" else check_folder)(path)
    except LocalModelError:
        return packaged(model)
    return path


def packaged(model: Model) -> Path | None:
    """The model's file inside its package, if that is installed; the package is not imported."""
    try:
        files = importlib.metadata.files(model.package) if model.package else None
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files or ():
        path = Path(str(file.locate()))
        if file.name in model.files and path.is_file():
            return path
    return None


def resolve(text: str, directory: Path | None = None) -> Source:
    """What the text names. Raises `LocalModelError`, which says what to do."""
    text = text.strip()
    directory = directory or models_directory()
    for model in CATALOG:
        if text == model.name:
            return Source(text, model.format, present(model, directory), model.repo, model)
    path = Path(text).expanduser()
    exists = bool(text) and path.exists()
    if not exists and (named := gguf_of(text)):
        repo, files = named
        paths = [folder(repo, directory) / file for file in files]
        return Source(text, "gguf", paths[0] if all(map(_is_gguf, paths)) else None, repo)
    if exists or text.startswith((".", "/", "~")) or text.endswith((".gguf", PART)):
        if not exists:
            raise LocalModelError(f"{path} does not exist: check the path, or {_names(text)}")
        if path.is_dir():
            check_folder(path)
            return Source(text, "safetensors", path)
        check_gguf(path)
        return Source(text, "gguf", path)
    if REPOSITORY.fullmatch(text):
        here = folder(text, directory)
        try:
            check_folder(here)
        except LocalModelError:
            return Source(text, "safetensors", None, text)
        return Source(text, "safetensors", here, text)
    raise LocalModelError(f"{text!r} is no model of the catalog, no path and no hub name: {_names(text)}")


def check_gguf(path: Path) -> None:
    """Raise `LocalModelError` unless it is a GGUF file, by the four letters that it begins with."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise LocalModelError(f"{path} does not exist") from None
    except OSError as error:
        raise LocalModelError(f"{path} cannot be read: {error.strerror}") from error
    if path.name.endswith(PART):
        raise LocalModelError(f"{path} has not been fetched to its end: run the same `local pull` again")
    if magic != b"GGUF":
        what = "an empty file" if not magic else f"it begins with {magic!r}"
        raise LocalModelError(
            f"{path} is no GGUF file ({what}): give a .gguf file, or a folder with config.json", why="corrupt"
        )


def _is_gguf(path: Path) -> bool:
    try:
        check_gguf(path)
    except LocalModelError:
        return False
    return True


def check_folder(path: Path) -> None:
    """Raise `LocalModelError` unless it holds a whole model: config.json, and all safetensors that its index names."""
    if not path.is_dir():
        raise LocalModelError(f"{path} is no folder")
    if not (path / "config.json").is_file():
        inner = sorted(file.name for file in path.glob("*.gguf"))
        hint = f"give the file inside it: {path / inner[0]}" if inner else "a folder of safetensors has one"
        raise LocalModelError(f"{path} has no config.json: {hint}")
    try:
        named = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except FileNotFoundError:
        named = set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LocalModelError(f"{path / INDEX} cannot be read ({error}): fetch it again") from error
    missing = sorted(name for name in named if not (path / str(name)).is_file())
    if missing or not (named or any(path.glob("*.safetensors"))):
        which = f"{missing[0]}, and {len(missing) - 1} more" if len(missing) > 1 else (missing or ["*.safetensors"])[0]
        raise LocalModelError(f"{path} is not whole ({which} is missing): fetch it again")


def _names(text: str) -> str:
    close = difflib.get_close_matches(text.lower(), [model.name for model in CATALOG], n=1, cutoff=0.5)
    known = "`deepseek-resilient local list` shows the catalog"
    return f"did you mean {close[0]}? {known}" if close else known
