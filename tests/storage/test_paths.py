"""Places elsewhere: failures in passing are tried again, final ones are told at once, and none is taken for absence."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mrm_stream.errors import StorageError
from mrm_stream.storage import files, paths, retries
from mrm_stream.storage.files import (
    create_exclusively,
    names_in,
    overwrite,
    read_pieces,
    read_whole,
    remove,
    size_of,
    upload,
)
from mrm_stream.storage.paths import is_remote, local_fault, parse_path
from mrm_stream.storage.remote import RemotePath
from mrm_stream.storage.retries import retrying
from tests.packing.faulty_s3 import ALL, Faults, FaultyS3, retry_soon, running


@pytest.fixture(scope="module")
def s3() -> Iterator[FaultyS3]:
    with running() as server:
        server.make_bucket("storage")
        yield server


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    retry_soon(monkeypatch)


def place(name: str) -> RemotePath:
    remote = parse_path(f"s3://storage/{name}")
    assert isinstance(remote, RemotePath)
    return remote


def put(s3: FaultyS3, name: str, content: bytes) -> None:
    s3.client.put_object(Bucket="storage", Key=name, Body=content)


def test_paths_are_local_and_urls_are_not() -> None:
    assert parse_path("shards/mimic") == Path("shards/mimic")
    assert parse_path("file:///data/mimic") == Path("/data/mimic")
    assert is_remote(parse_path("memory://bucket/set"))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("s3:/bucket/set", "s3://bucket/set"),
        ("s3:bucket/set", "s3://bucket/set"),
        ("S3:\\\\bucket", "s3://bucket"),
        ("gs:bucket", "gs://bucket"),
        ("https:/host/set", "https://host/set"),
        ("s3:", None),
        ("file:set", None),
        ("://bucket/set", None),
        ("C:/data", None),
    ],
)
def test_what_is_neither_is_refused_and_what_was_meant_is_named(text: str, meant: str | None) -> None:
    with pytest.raises(StorageError, match="neither a path nor a URL") as caught:
        parse_path(text)
    assert caught.value.remedy is not None
    assert ("Did you mean" in caught.value.remedy) == (meant is not None)
    assert meant is None or f"Did you mean {meant}? " in caught.value.remedy
    assert local_fault(text) == "is a URL, where a local path is needed"


@pytest.mark.parametrize("text", ["./s3:/bucket", "runs:2024/first", "sets/s3:a", "s3"])
def test_a_folder_whose_name_holds_a_colon_is_a_folder(text: str) -> None:
    assert parse_path(text) == Path(text)
    assert local_fault(text) is None


@pytest.mark.parametrize("url", ["nonsense://bucket/set", "gs://bucket/set"])
def test_a_scheme_that_nothing_serves_is_told(url: str) -> None:
    with pytest.raises(StorageError, match="cannot be reached"):
        parse_path(url)


def test_time_outs_and_attempts_reach_the_client(s3: FaultyS3) -> None:
    names_in(place("options"))
    config = place("options").fs.s3.meta.config
    assert (config.connect_timeout, config.read_timeout) == (paths._CONNECT_S, 0.3)
    assert config.retries["total_max_attempts"] == 1


def test_a_place_sent_elsewhere_finds_the_client_that_is_there(s3: FaultyS3) -> None:
    """Each shard's job is unpickled: a client for each would fill a worker with open connections."""
    original = place("sent")
    overwrite(original, b"content")  # connected, whatever that changes in its options
    copies = [pickle.loads(pickle.dumps(original)) for _ in range(3)]  # noqa: S301
    assert all(copy.fs is original.fs and read_whole(copy, 10) == b"content" for copy in copies)
    assert len({original, *copies}) == 1


@pytest.mark.parametrize("kind", ALL)
def test_each_fault_in_passing_is_tried_again(s3: FaultyS3, kind: str) -> None:
    put(s3, f"{kind}/a", b"content" * 1000)
    target = place(f"{kind}/b")
    with s3.failing(Faults(0.35, (kind,), seed=1, only=lambda method, path: kind in path)) as faults:
        assert read_whole(place(f"{kind}/a"), 1 << 20) == b"content" * 1000
        assert b"".join(read_pieces(place(f"{kind}/a"))) == b"content" * 1000
        overwrite(target, b"content")
        assert names_in(place(kind)) == {"a", "b"}
        assert place(f"{kind}/a").is_file()
        assert place(kind).is_dir()
        remove(target)
    assert faults.seen[kind] > 1
    assert s3.contents("storage", kind).keys() == {"a"}


def test_requests_are_counted_no_retries_hide_beneath_ours(s3: FaultyS3) -> None:
    """Attempts of botocore or s3fs would multiply with ours, and with the time-outs."""
    put(s3, "counted", b"content")
    acts: list[Callable[[], object]] = [lambda: size_of(place("counted")), lambda: overwrite(place("counted"), b"x")]
    for kind in ("slow-down", "internal"):
        for act in acts:
            with s3.failing(Faults(1, (kind,))) as faults, pytest.raises(StorageError, match="8 times"):
                act()
            assert faults.seen["requests"] == retries.ATTEMPTS


def test_storage_that_stays_down_is_never_taken_for_absence(
    s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, "down/a", b"content")
    (tmp_path / "local").write_bytes(b"content")
    down = place("down/a")
    questions: list[Any] = [
        down.is_file,
        down.is_dir,
        down.exists,
        lambda: names_in(place("down")),
        lambda: list(place("down").rglob("*")),
        lambda: read_whole(down, 10),
        lambda: list(read_pieces(down)),
        lambda: size_of(down),
        lambda: remove(down),
        lambda: overwrite(down, b"x"),
        lambda: create_exclusively(down, b"x"),
        lambda: upload(tmp_path / "local", down),
    ]
    monkeypatch.setattr(retries, "ATTEMPTS", 3)
    with s3.failing(Faults(1, ("internal", "slow-down", "reset"))):
        for question in questions:
            with pytest.raises(StorageError, match="remote storage failed 3 times"):
                question()


def test_what_is_denied_is_told_at_once(s3: FaultyS3, tmp_path: Path) -> None:
    put(s3, "denied/a", b"content")
    (tmp_path / "local").write_bytes(b"content")
    denied = place("denied/a")
    questions: list[Any] = [
        denied.is_file,
        denied.exists,
        lambda: names_in(place("denied")),
        lambda: overwrite(denied, b"x"),
        lambda: create_exclusively(denied, b"x"),
        lambda: remove(denied),
        lambda: upload(tmp_path / "local", denied),
    ]
    with s3.failing(Faults(1, ("deny",))) as faults:
        for question in questions:
            before = faults.seen["requests"]
            with pytest.raises(StorageError, match=r"permission denied|cannot be written") as caught:
                question()
            assert "PermissionError" in caught.value.what
            assert faults.seen["requests"] - before <= 2
        with pytest.raises(PermissionError):  # of one image: that is quarantined, the others are not
            read_whole(denied, 10)


def test_no_such_bucket_is_told_at_once(s3: FaultyS3, tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    nowhere = parse_path("s3://no-such-bucket/set/a")
    assert names_in(nowhere.parent) == set()
    assert not nowhere.is_file()
    with pytest.raises(FileNotFoundError):
        read_whole(nowhere, 10)
    for write in (
        lambda: overwrite(nowhere, b"x"),
        lambda: create_exclusively(nowhere, b"x"),
        lambda: upload(tmp_path / "local", nowhere),
    ):
        with pytest.raises(StorageError, match="cannot be written: FileNotFoundError"):
            write()


def test_without_credentials_the_error_says_so_at_once(s3: FaultyS3) -> None:
    code = "from mrm_stream.storage.files import names_in; from mrm_stream.storage.paths import parse_path; names_in(parse_path('s3://storage/set'))"
    environment = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "PATH": "/usr/bin:/bin"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "StorageError" in run.stderr
    assert "NoCredentialsError" in run.stderr
    assert "trying again" not in run.stderr


def test_reading_takes_no_more_than_asked_for(s3: FaultyS3) -> None:
    put(s3, "large", bytes(1_000_000))
    sent = s3.bytes_sent
    assert len(read_whole(place("large"), 999)) == 1000
    assert s3.bytes_sent - sent == 1000
    assert len(read_whole(place("large"), 1_000_000)) == 1_000_000
    put(s3, "nothing", b"")
    assert read_whole(place("nothing"), 10) == b""
    assert list(read_pieces(place("nothing"))) == []


def test_pieces_join_to_the_whole(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PIECE", 7)
    for size in (1, 6, 7, 8, 70):
        put(s3, "pieces", bytes(range(size)))
        pieces = list(read_pieces(place("pieces")))
        assert b"".join(pieces) == bytes(range(size))
        assert max(map(len, pieces)) <= 7


def test_what_comes_cut_short_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length alone tells: the answer was a good one."""
    monkeypatch.setattr(files, "_PIECE", 4)
    place = parse_path("memory://fetches/a.tar")
    assert isinstance(place, RemotePath)
    place.write_bytes(b"some content")
    fetch, short = place.fs.cat_file, [True]

    def cut(*arguments: Any, **settings: Any) -> bytes:
        content: bytes = fetch(*arguments, **settings)
        short[0] = not short[0]
        return content if short[0] else content[:-1]

    monkeypatch.setattr(place.fs, "cat_file", cut)
    assert read_whole(place, 100) == b"some content"
    assert list(read_pieces(place)) == [b"some", b" con", b"tent"]


def test_listings_are_never_stale(s3: FaultyS3) -> None:
    folder = place("fresh")
    seen = []
    for number in range(3):
        seen.append(names_in(folder))
        put(s3, f"fresh/{number}", b"x")  # by somebody else
        assert (folder / str(number)).is_file()
    assert seen == [set(), {"0"}, {"0", "1"}]
    assert names_in(folder) == {"0", "1", "2"}
    s3.client.delete_object(Bucket="storage", Key="fresh/1")
    assert not (folder / "1").exists()
    assert names_in(folder) == {"0", "2"}


def test_a_folder_that_somebody_made_is_no_entry_of_itself(s3: FaultyS3) -> None:
    put(s3, "made/", b"")
    put(s3, "made/a", b"x")
    put(s3, "made/below/b", b"x")
    assert names_in(place("made")) == {"a", "below"}
    assert place("made").is_dir()
    assert not place("made").is_file()
    assert sorted(str(found) for found in place("made").rglob("*")) == [
        "s3://storage/made/a",
        "s3://storage/made/below",
        "s3://storage/made/below/b",
    ]
    with pytest.raises(NotADirectoryError):
        names_in(place("made/a"))


def test_one_of_two_creates(s3: FaultyS3) -> None:
    lease = place("lease")
    assert create_exclusively(lease, b"first")
    assert not create_exclusively(lease, b"second")
    assert read_whole(lease, 10) == b"first"


def test_a_creation_whose_answer_was_lost_is_ours(s3: FaultyS3) -> None:
    answers = iter(("lost",))
    faults = Faults(1, ("lost",), only=lambda method, path: method == "PUT" and next(answers, None) is not None)
    with s3.failing(faults):
        assert create_exclusively(place("lost-lease"), b"ours")
    assert faults.seen["lost"] == 1
    assert not create_exclusively(place("lost-lease"), b"theirs")


def test_pauses_double_and_the_cause_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.25)
    monkeypatch.setattr(time, "sleep", pauses.append)

    def fail() -> None:
        raise TimeoutError("made up")

    with pytest.raises(StorageError, match="TimeoutError: made up") as caught:
        retrying(fail, place("any"))
    assert pauses == [0.25 * 2**number for number in range(retries.ATTEMPTS - 1)]
    assert isinstance(caught.value.__cause__, TimeoutError)
    with pytest.raises(TimeoutError):
        retrying(fail, Path("local"))


def _uses_of_a_place(folder: Any, local: Path) -> None:
    """What packing does with a place, of whatever kind."""
    assert names_in(folder) == set()
    assert not folder.is_dir()
    assert create_exclusively(folder / "below" / "lock", b"ours")
    assert not create_exclusively(folder / "below" / "lock", b"theirs")
    upload(local, folder / "a.tar")
    upload(local, folder / "a.tar")
    assert names_in(folder) == {"a.tar", "below"}
    assert read_whole(folder / "a.tar", 3) == b"cont"
    assert size_of(folder / "a.tar") == len(b"content")
    assert b"".join(read_pieces(folder / "a.tar")) == b"content"
    assert (folder / "a.tar").with_suffix(".idx").name == "a.idx"
    remove(folder / "a.tar")
    remove(folder / "a.tar")
    remove(folder / "below" / "lock")
    assert not (folder / "a.tar").exists()
    with pytest.raises(FileNotFoundError):
        read_whole(folder / "a.tar", 3)


def test_storage_in_memory_serves_too(tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    _uses_of_a_place(parse_path("memory://elsewhere/set"), tmp_path / "local")


def test_storage_with_folders_serves_too_and_a_file_appears_there_whole(tmp_path: Path) -> None:
    (tmp_path / "local").write_bytes(b"content")
    # A file system that is no object store, as sftp:// is.
    folder = RemotePath(f"file://{tmp_path}/elsewhere", use_listings_cache=False)
    assert folder.protocol == "file"
    seen: list[set[str]] = []
    move = folder.fs.mv

    def watch(*arguments: Any, **settings: Any) -> None:
        seen.append({path.name for path in (tmp_path / "elsewhere").iterdir()})
        move(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder.fs, "mv", watch)
        _uses_of_a_place(folder, tmp_path / "local")
    assert "a.tar" not in seen[0]
    assert len(seen[0]) == 2


def test_an_upload_leaves_nothing_beside_the_file_whether_it_succeeds_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local").write_bytes(b"content")
    place = RemotePath(f"file://{tmp_path}/elsewhere/a.tar", use_listings_cache=False)
    upload(tmp_path / "local", place)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["a.tar"]

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("not here")

    other = RemotePath(f"file://{tmp_path}/elsewhere/b.tar", use_listings_cache=False)
    monkeypatch.setattr(other.fs, "mv", refuse)
    with pytest.raises(StorageError, match="cannot be written"):
        upload(tmp_path / "local", other)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["a.tar"]


def test_an_upload_that_arrives_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a proxy leaves it that ends before the client does, and answers well."""
    (tmp_path / "local").write_bytes(b"content")
    (tmp_path / "short").write_bytes(b"cont")
    monkeypatch.setattr(retries, "ATTEMPTS", 2)
    for place in (
        parse_path("memory://uploads/a.tar"),
        RemotePath(f"file://{tmp_path}/elsewhere/a.tar", use_listings_cache=False),
    ):
        assert isinstance(place, RemotePath)
        to_cut = [True]

        def cut(
            local: str, *rest: Any, put: Any = place.fs.put_file, to_cut: list[bool] = to_cut, **settings: Any
        ) -> None:
            put(str(tmp_path / "short") if to_cut and to_cut.pop() else local, *rest, **settings)

        monkeypatch.setattr(place.fs, "put_file", cut)
        upload(tmp_path / "local", place)
        assert read_whole(place, 100) == b"content"
        to_cut += [True] * retries.ATTEMPTS
        with pytest.raises(StorageError, match="fewer bytes arrived"):
            upload(tmp_path / "local", place)
    assert read_whole(place, 100) == b"content", "the file that was there stays, where storage has folders"
