"""Nothing is given twice, in anything that is read: settings, manifests, checkpoints, logs, tokenizers, notes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.errors import CheckpointError, ConfigError, MrmStreamError, ShardError
from mrm_stream.formats.manifest import read_manifest
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.journal import Journal
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.storage.publish import make_private_folder
from mrm_stream.strict import DuplicateKeyError, parse_json, parse_yaml
from mrm_stream.text.tokenizer import load_tokenizer
from mrm_stream.training.checkpoint import read_state
from mrm_stream.training.metrics import read_metrics


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {threads: 1}\nseed: 3\ndata: {window: 2}", "the key 'data' is given twice, in lines 1 and 3"),
        ("optim:\n  epochs: 1\n  epochs: 1", "the key 'epochs' is given twice, in lines 2 and 3"),
        ("model:\n  image_encoder:\n    depth: 1\n    'depth': 2", "the key 'depth' is given twice, in lines 3 and 4"),
        ("c: 1\na: [{b: 1, b: 2}]", "the key 'b' is given twice in line 2"),
        ("1: a\ntrue: b", "the key True is given twice, in lines 1 and 2"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n  <<: {d: 1}", "a key is given twice, in lines 3 and 4"),
        ("a: &a\n  b: 1\n  b: 2\nc: {<<: *a}", "the key 'b' is given twice, in lines 2 and 3"),
        ("the lungs are clear: 1\nthe lungs are clear: 2", "a key is given twice, in lines 1 and 2"),
    ],
)
def test_yaml_with_a_key_twice_is_refused_with_both_lines(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DuplicateKeyError) as caught:
        parse_yaml(text)
    assert str(caught.value) == said
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        load_config(PretrainConfig, path)
    assert str(told.value).startswith(f"{path}: {said}\n")


def test_what_yaml_merges_or_repeats_is_given_once() -> None:
    text = "a: &a {b: 1, c: 2}\nd: {<<: *a, b: 3}\ne: *a\nf: {<<: *a}"
    once = {"b": 1, "c": 2}
    assert parse_yaml(text) == {"a": once, "d": {"b": 3, "c": 2}, "e": once, "f": once}


def test_what_is_merged_may_itself_have_merged_and_given_anew() -> None:
    text = "a: &a {b: 1, c: 2}\nd: &d {<<: *a, b: 3}\ne: {<<: *d, c: 4}\nf: {<<: [*d, *a]}"
    assert parse_yaml(text) == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 3, "c": 2},
        "e": {"b": 3, "c": 4},
        "f": {"b": 3, "c": 2},
    }


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 0, "a": 2}}]', b'{"\\u0061": 1, "a": 1}'])
def test_json_with_a_key_twice_is_refused(text: str | bytes) -> None:
    with pytest.raises(DuplicateKeyError, match="the key 'a' is given twice"):
        parse_json(text)


def twice(path: Path, key: str) -> None:
    """Give a key of a JSON object again, with its own value: nothing else is wrong."""
    text = path.read_text()
    value = json.dumps(json.loads(text)[key])
    path.write_text(text.replace("{", f'{{"{key}": {value}, ', 1))


def test_every_json_of_ours_is_read_so(tmp_path: Path) -> None:
    write_phantom_tree(tmp_path / "tree", 8, size=64, workers=1, progress=None)
    pack("mimic", tmp_path / "tree", tmp_path / "set", options=PackOptions(short_side=64, vocabulary=200))
    twice(tmp_path / "set" / "manifest.json", "source")
    with pytest.raises(ShardError, match="the key 'source' is given twice"):
        read_manifest(tmp_path / "set")
    twice(tmp_path / "set" / "tokenizer.json", "model")
    with pytest.raises(ShardError, match="given twice"):
        load_tokenizer(tmp_path / "set" / "tokenizer.json")
    (tmp_path / "state.json").write_text('{"format": "mrm-stream-checkpoint", "version": 1, "version": 1}')
    with pytest.raises(CheckpointError, match="the key 'version' is given twice"):
        read_state(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "step": 3}\n')
    with pytest.raises(MrmStreamError, match="'step' is given twice") as caught:
        read_metrics(tmp_path)
    assert caught.value.where == f"{tmp_path / 'metrics.jsonl'}, line 2"
    journal = Journal(tmp_path / "out")
    make_private_folder(tmp_path / "out" / ".packing")
    journal.note("a", {"x": 1})
    twice(tmp_path / "out" / ".packing" / "a.json", "sha256")
    assert journal.recall("a") is None
