"""Command lines that are refused leave every file and folder as it was: names, contents and modes."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mrm_stream.cli import main
from mrm_stream.config.file import load_config
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.stream.opening import fingerprint_of
from mrm_stream.training.checkpoint import save_checkpoint
from mrm_stream.training.run_directory import prepare_run
from tests.files import contents

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.yaml"
TRAIN = f"train --config {SMOKE} --ranks 1"
CLUSTER = "127.0.0.1:1"  # Nothing listens at port 1.


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, two packed sets of it, and a run of the first that has saved a checkpoint."""
    folder = tmp_path_factory.mktemp("world")
    write_phantom_tree(folder / "tree", 24, size=64, workers=1, progress=None)
    for name, samples in (("a", 8), ("b", 16)):
        options = PackOptions(short_side=64, vocabulary=200, samples_per_shard=samples)
        pack("mimic", folder / "tree", folder / "sets" / name, options=options)
    config = load_config(PretrainConfig, SMOKE, [f"data.shards={folder}/sets/a", f"run.out={folder}/run"])
    prepare_run(folder / "run", config, []).close()
    state = {"step": 1, "loader": {"fingerprint": fingerprint_of(config.data)}, "vocabulary": 200}
    save_checkpoint(folder / "run", {"a": torch.zeros(1)}, {"step": torch.ones(1)}, state, keep=1)
    shutil.copytree(folder / "sets" / "a", folder / "damaged")
    next((folder / "damaged").glob("*.tar")).unlink()
    (folder / "junk.json").write_text("{}")
    (folder / "link").symlink_to("tree")
    (folder / "lists").mkdir()
    shutil.copytree(folder / "tree", folder / "sets" / "source" / "tree")
    return folder


# Each with a part of what is said.
REFUSED = [
    # Other data, and other settings, than those of the run that is there.
    (f"{TRAIN} --shards sets/b --out run", "holds a run of other data"),
    (f"{TRAIN} --shards sets/a --out run --set 'data.mixture={{sets/b: 0.5}}'", "holds a run with other settings"),
    (f"{TRAIN} --shards sets/a --out run --set seed=3", "seed was 0, is 3"),
    (f"{TRAIN} --shards sets/a --out run --set data.mean=128", "128 of 255 is 0.502"),
    (f"{TRAIN} --shards absent --out run", "no packed data set"),
    (f"{TRAIN} --shards sets/b --out run --set data.cache=new/cache", "holds a run of other data"),
    # Before there is a run.
    (f"{TRAIN} --shards sets/a --out new/run --set method.mask_ratio=0.9999", "masks all"),
    (f"{TRAIN} --shards sets/a --out new/run --set 'data={{threads: 1, threads: 2}}'", "given twice"),
    (f"{TRAIN} --shards sets/a --out junk.json/run", "Not a directory"),
    (f"{TRAIN} --shards sets/a --out new/run --set run.init=run", "mrm-stream export --run run"),
    (f"{TRAIN} --shards sets/a --out new/run --set run.init=absent.pth", "absent.pth: no such file"),
    # In each other's folders.
    (f"{TRAIN} --shards sets/a --out sets/a", "is, or lies in, the packed set"),
    (f"{TRAIN} --shards sets/a --out sets/a/run", "is, or lies in, the packed set"),
    (f"{TRAIN} --shards sets/a --out sets/b/run", "is, or lies in, the packed set"),
    (f"{TRAIN} --shards sets/a --out sets", "lies in it"),
    (f"{TRAIN} --shards sets/a --out new/run --set data.cache=sets/a", "data.cache"),
    (f"{TRAIN} --shards sets/a --out new/run --set data.cache=new", "lies in, data.cache"),
    ("shard --src mimic --root tree --out sets/a", "already holds shards"),
    ("shard --src mimic --root tree --out sets/a/new", "lies in the packed set"),
    ("shard --src mimic --root tree --out tree", "holds other files"),
    ("tokenize sets/a --out sets/a --length 9", "already holds shards"),
    ("tokenize sets/a --out sets/a/new --length 9", "a set within a set"),
    ("tokenize sets/a --out sets/b/new --length 9", "lies in the packed set"),
    ("tokenize sets/a --out sets --length 9", "holds other files"),
    # Which would become a part of the source.
    ("shard --src mimic --root tree --out tree/set", "lies in --root, tree"),
    ("shard --src mimic --root tree --out link/files/set", "lies in --root, tree"),
    ("shard --src nih --root tree --lists lists --out lists/set", "lies in --lists, lists"),
    ("shard --src mimic --root sets/source/tree --out sets/source", "holds other files"),
    # Which would only copy.
    ("tokenize sets/a --out new/set", "nothing would change"),
    ("tokenize sets/a --out new/set --sections whole", "Give --tokenizer, --vocabulary, or --sections or --length"),
    ("phantom --out sets/a/new -n 1", "lies in, a packed set"),
    ("phantom --out tree -n 1", "is not an empty folder"),
    ("inspect sets/a --out sets/a/page.html", "lies in, a packed set"),
    ("reconstruct --run run --out sets/a/x.png", "lies in, a packed set"),
    ("export --run run --out sets/a/train-00000.tar", "lies in, a packed set"),
    ("export --run run --out run/checkpoints/step-00000001/model.safetensors", "a checkpoint"),
    ("bench pack --out sets/a -n 1", "lies in, a packed set"),
    ("bench data --out new --trace sets/a/train-00000.tar -n 1", "lies in, a packed set"),
    ("bench order --out sets/a/new", "lies in, a packed set"),
    # URLs, and other text, where a local path is needed.
    (f"{TRAIN} --shards sets/a --out s3://bucket/run", "run.out: is a URL"),
    (f"{TRAIN} --shards sets/a --out new/run --set data.cache=s3://bucket/cache", "data.cache is a URL"),
    (f"{TRAIN} --shards sets/a --out new/run --set run.init=gs://bucket/mae.pth", "run.init is a URL"),
    (f"{TRAIN} --shards sets/a --set run.out=~/run", "begins with ~"),
    (f"{TRAIN} --shards sets/a --set run.out=$HOME/run", "begins with $"),
    ("train --config s3://bucket/run.yaml --shards sets/a --out new", "is a URL"),
    ("phantom --out s3://bucket/tree -n 1", "is a URL"),
    ("shard --src mimic --root tree --out s3:/bucket/set", "is neither a path nor a URL"),
    # With a slash, or both, missing: each option and setting that takes a place.
    ("shard --src mimic --root tree --out s3:bucket/set", "Did you mean s3://bucket/set?"),
    ("shard --src mimic --root s3:tree --out new", "Did you mean s3://tree?"),
    ("shard --src training-csv --root tree --lists s3:lists --out new", "Did you mean s3://lists?"),
    ("tokenize sets/a --out gs:/set", "Did you mean gs://set?"),
    ("tokenize s3:a --out new", "Did you mean s3://a?"),
    ("verify s3:a", "Did you mean s3://a?"),
    ("inspect s3:a", "Did you mean s3://a?"),
    ("repair s3:a --root tree", "Did you mean s3://a?"),
    ("repair sets/a --root s3:tree", "Did you mean s3://tree?"),
    (f"{TRAIN} --shards s3:a --out new", "Did you mean s3://a?"),
    (f"{TRAIN} --shards sets/a --out new --set 'data.mixture={{s3:b: 0.2}}'", "Did you mean s3://b?"),
    (f"{TRAIN} --shards sets/a --out s3:run", "run.out: is a URL"),
    ("reconstruct --run run --shards s3:a --out new/x.png", "Did you mean s3://a?"),
    ("export --run s3:run --out x.pth", "is a URL"),
    ("phantom --out s3:tree -n 1", "is a URL"),
    ("bench data --out s3:bench -n 1", "is a URL"),
    ("shard --src mimic --root tree --out new --tokenizer s3://bucket/t.json", "is a URL"),
    ("tokenize sets/a --out ~/set", "begins with ~"),
    ("inspect sets/a --out s3://bucket/page.html", "is a URL"),
    ("reconstruct --run s3://bucket/run --out x.png", "is a URL"),
    ("reconstruct --run run --out s3://bucket/x.png", "is a URL"),
    ("export --run run --out s3://bucket/x.safetensors", "is a URL"),
    ("bench pack --out s3://bucket/bench -n 1", "is a URL"),
    ("bench data --out s3://bucket/bench -n 1", "is a URL"),
    ("bench data --out new --trace s3://bucket/trace.json -n 1", "is a URL"),
    ("bench order --out s3://bucket/bench", "is a URL"),
    # What is found when a job has all but begun.
    ("shard --src mimic --root absent --out new/set", "no such directory"),
    ("shard --src mimic --root tree --out new/set --vocabulary 64 --sections none_such", "section"),
    ("shard --src mimic --root tree --out new/set --sections technique", "no report to train a tokenizer on"),
    ("shard --src mimic --root tree --out new/set --tokenizer junk.json", "tokenizer"),
    (f"shard --src mimic --root tree --out new/set --scheduler {CLUSTER}", "no Dask scheduler answers"),
    (f"tokenize sets/a --out new/set --length 9 --scheduler {CLUSTER}", "no Dask scheduler answers"),
    ("tokenize sets/a --out new/set --sections technique --vocabulary 200", "no reports to train a tokenizer on"),
    ("tokenize sets/a --out new/set --tokenizer junk.json", "tokenizer"),
    ("tokenize tree --out new/set", "no packed data set"),
    ("repair damaged --root absent", "absent"),
    ("repair sets/a --root absent", "absent: there is no such directory"),
    ("repair sets/a --root junk.json", "junk.json: there is no such directory"),
    ("verify tree", "no packed data set"),
    ("inspect tree --out new/page.html", "no packed data set"),
    ("inspect sets/a --out new/page.pdf", "ends in .html"),
    ("reconstruct --run absent --out new/x.png", "there is no run here"),
    ("reconstruct --run run --out new/x.png", "is only in"),
    ("reconstruct --run run --out new/x.jpg", "ends in .png"),
    ("export --run run --out new/x.safetensors", "is only in"),
    ("export --run absent --out new/x.safetensors", "there is no run here"),
    ("bench data --out new -n 48 --mosaicml absent", "absent"),
    ("plan --samples 0 --ranks 1", "is not a whole number"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line.replace(TRAIN, "train") for line, _ in REFUSED])
def test_what_is_refused_changes_nothing(world: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str) -> None:
    monkeypatch.chdir(world)
    monkeypatch.setattr("mrm_stream.packing.workers._CONNECT_S", 1)
    before = contents(world)
    result = CliRunner().invoke(main, shlex.split(line))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert contents(world) == before


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_told_at_once(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (world / "closed").mkdir(mode=0o500)
    monkeypatch.chdir(world)
    for line in ("reconstruct --run run --out closed/x.png", f"{TRAIN} --shards sets/a --out closed/run"):
        assert "Permission denied" in CliRunner().invoke(main, shlex.split(line)).output
