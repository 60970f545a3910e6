"""Where permission is denied, every command says so, where, and what to do: no traceback, and no other cause."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from mrm_stream.cli import main
from mrm_stream.formats.options import PackOptions
from mrm_stream.packing.pack import pack
from mrm_stream.sources.phantom.tree import write_phantom_tree
from mrm_stream.sources.registry import SOURCES

SETTINGS = """
data: {hr_size: 64, lr_size: 32, report_length: 24, window: 2, threads: 1}
model:
  patch: 8
  image_encoder: {width: 32, depth: 1, heads: 2}
  image_decoder: {width: 32, depth: 1, heads: 2}
  report_decoder: {width: 32, depth: 1, heads: 2, feed_forward: 32}
optim: {batch_size: 6, epochs: 4, warmup_epochs: 1}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree, a packed set, a run with a checkpoint, and a configuration; nothing of it is locked."""
    from mrm_stream.config.file import load_config, with_paths
    from mrm_stream.config.pretrain import PretrainConfig
    from mrm_stream.stream.shard_set import ShardSet
    from mrm_stream.stream.source import reports_of
    from mrm_stream.tasks.pretrain import make_model
    from mrm_stream.training.checkpoint import save_checkpoint
    from mrm_stream.training.run_directory import prepare_run

    folder = tmp_path_factory.mktemp("whole")
    write_phantom_tree(folder / "tree", 8, size=64, workers=1, progress=None)
    options = PackOptions(short_side=64, samples_per_shard=4, vocabulary=200)
    pack("mimic", folder / "tree", folder / "shards", options=options)
    (folder / "mrm.yaml").write_text(SETTINGS)
    (folder / "lists").mkdir()
    (folder / "covid").mkdir()
    columns = "patientid,offset,finding,view,modality,folder,filename,clinical_notes"
    (folder / "covid/metadata.csv").write_text(f"{columns}\n1,0,COVID-19,PA,X-ray,images,a.png,Clear.\n")
    config = with_paths(
        load_config(PretrainConfig, folder / "mrm.yaml", []), shards=str(folder / "shards"), out=str(folder / "run")
    )
    prepare_run(folder / "run", config, []).close()
    shards = ShardSet.open(folder / "shards", "train")
    reports = reports_of(shards)
    weights = make_model(config, reports.vocabulary).state_dict()
    state = {
        "step": 1,
        "vocabulary": reports.vocabulary,
        "tokenizer_sha256": reports.tokenizer_sha256,
    }
    save_checkpoint(folder / "run", weights, {}, state, keep=1)
    shards.close()
    return folder


@dataclass(frozen=True)
class Case:
    """A command line, and what it may not touch."""

    command: str
    """With `{}` for the folder that all lies in."""
    locked: str
    """Below that folder."""
    mode: int = 0


SHARD = "shard --src mimic --root {}/tree --out {}/new --short-side 64 --vocabulary 200 --workers 1"
TRAIN = "train --config {}/mrm.yaml --shards {}/shards --out {}/new --ranks 1"
CASES = {
    "root": Case(SHARD, "tree"),
    "root-below": Case(SHARD.replace("/tree", "/tree/files"), "tree"),
    "table": Case(SHARD, "tree/mimic-cxr-2.0.0-metadata.csv.gz"),
    "files": Case(SHARD, "tree/files"),
    "dry-run-files": Case(SHARD + " --dry-run", "tree/files"),
    "lists": Case(SHARD.replace("mimic", "covid").replace("tree", "covid") + " --lists {}/lists", "lists"),
    "tokenizer": Case(SHARD.replace("--vocabulary 200", "--tokenizer {}/shards/tokenizer.json"), "shards"),
    "out-below-locked": Case(SHARD.replace("{}/new", "{}/lists/a/b"), "lists"),
    "out-below-unwritable": Case(SHARD.replace("{}/new", "{}/lists/a/b"), "lists", 0o555),
    "out-unwritable": Case(SHARD.replace("{}/new", "{}/lists"), "lists", 0o555),
    "out-locked": Case(SHARD.replace("{}/new", "{}/lists"), "lists"),
    "verify": Case("verify {}/shards --workers 1", "shards"),
    "verify-manifest": Case("verify {}/shards --workers 1", "shards/manifest.json"),
    "verify-tar": Case("verify {}/shards --workers 1", "shards/train-00000.tar"),
    "verify-index": Case("verify {}/shards --decode --workers 1", "shards/train-00000.idx"),
    "verify-tokenizer": Case("verify {}/shards --decode --workers 1", "shards/tokenizer.json"),
    "verify-dictionary": Case("verify {}/shards --decode --workers 1", "shards/reports.zdict"),
    "inspect": Case("inspect {}/shards --out {}/a.html", "shards"),
    "inspect-tar": Case("inspect {}/shards --out {}/a.html", "shards/train-00000.tar"),
    "inspect-out": Case("inspect {}/shards --out {}/lists/a.html", "lists"),
    "inspect-out-below": Case("inspect {}/shards --out {}/lists/a/b.html", "lists"),
    "repair": Case("repair {}/shards --root {}/tree --workers 1", "shards"),
    "repair-unwritable": Case("repair {}/shards --root {}/tree --workers 1", "shards", 0o555),
    "repair-root": Case("repair {}/damaged --root {}/tree --workers 1", "tree"),
    "repair-root-files": Case("repair {}/damaged --root {}/tree --workers 1", "tree/files"),
    "repair-tar": Case("repair {}/shards --root {}/tree --workers 1", "shards/train-00000.tar"),
    "repair-quarantine": Case("repair {}/shards --root {}/tree --workers 1", "shards/quarantine.jsonl"),
    "tokenize": Case("tokenize {}/shards --out {}/new --length 9 --workers 1", "shards"),
    "tokenize-tar": Case("tokenize {}/shards --out {}/new --length 9 --workers 1", "shards/train-00000.tar"),
    "tokenize-out": Case("tokenize {}/shards --out {}/lists/a --length 9 --workers 1", "lists"),
    "tokenize-tokenizer": Case("tokenize {}/shards --out {}/new --tokenizer {}/lists/t.json --workers 1", "lists"),
    "train-config": Case(TRAIN, "mrm.yaml"),
    "train-config-below": Case(TRAIN.replace("{}/mrm.yaml", "{}/lists/mrm.yaml"), "lists"),
    "train-shards": Case(TRAIN, "shards"),
    "train-manifest": Case(TRAIN, "shards/manifest.json"),
    "train-tokenizer": Case(TRAIN, "shards/tokenizer.json"),
    "train-out": Case(TRAIN.replace("{}/new", "{}/lists/a/b"), "lists"),
    "train-out-unwritable": Case(TRAIN.replace("{}/new", "{}/lists/a/b"), "lists", 0o555),
    "train-run-locked": Case(TRAIN.replace("{}/new", "{}/run"), "run"),
    "train-run-config": Case(TRAIN.replace("{}/new", "{}/run"), "run/config.yaml"),
    "train-run-lock": Case(TRAIN.replace("{}/new", "{}/run"), "run/.lock"),
    "train-checkpoints": Case(TRAIN.replace("{}/new", "{}/run"), "run/checkpoints"),
    "train-cache": Case(TRAIN + " --set data.cache={}/lists/cache", "lists"),
    "train-cache-unwritable": Case(TRAIN + " --set data.cache={}/lists/cache", "lists", 0o555),
    "train-init": Case(TRAIN + " --set run.init={}/lists/mae.pth", "lists"),
    "train-init-file": Case(TRAIN + " --set run.init={}/run/checkpoints/step-00000001/model.safetensors", "run"),
    "reconstruct": Case("reconstruct --run {}/run --out {}/a.png", "run"),
    "reconstruct-shards": Case("reconstruct --run {}/run --out {}/a.png", "shards"),
    "reconstruct-shards-given": Case("reconstruct --run {}/run --out {}/a.png --shards {}/shards", "shards"),
    "reconstruct-checkpoints": Case("reconstruct --run {}/run --out {}/a.png", "run/checkpoints"),
    "reconstruct-metrics": Case("reconstruct --run {}/run --out {}/a.png", "run/metrics.jsonl"),
    "reconstruct-out": Case("reconstruct --run {}/run --out {}/lists/a/b.png", "lists"),
    "export": Case("export --run {}/run --out {}/a.safetensors", "run"),
    "export-run-below": Case("export --run {}/lists/run --out {}/a.safetensors", "lists"),
    "export-config": Case("export --run {}/run --out {}/a.safetensors", "run/config.yaml"),
    "export-checkpoints": Case("export --run {}/run --out {}/a.safetensors", "run/checkpoints"),
    "export-checkpoint": Case("export --run {}/run --out {}/a.safetensors", "run/checkpoints/step-00000001"),
    "export-model": Case(
        "export --run {}/run --out {}/a.safetensors", "run/checkpoints/step-00000001/model.safetensors"
    ),
    "export-state": Case("export --run {}/run --out {}/a.safetensors", "run/checkpoints/step-00000001/state.json"),
    "export-out": Case("export --run {}/run --out {}/lists/a.safetensors", "lists"),
    "phantom-out": Case("phantom --out {}/lists/a -n 1 --size 64 --workers 1", "lists"),
    "phantom-out-locked": Case("phantom --out {}/lists -n 1 --size 64 --workers 1", "lists"),
    "bench-pack": Case("bench pack --out {}/lists/a -n 2", "lists"),
    "bench-data": Case("bench data --out {}/lists/a -n 48", "lists"),
    "bench-order": Case("bench order --out {}/lists/a -n 256 --seeds 1", "lists"),
    **{f"root-{name}": Case(SHARD.replace("mimic", name), "tree") for name in SOURCES},
    **{
        f"above-root-{name}": Case(SHARD.replace("mimic", name).replace("/tree", "/lists/a"), "lists")
        for name in SOURCES
    },
}


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of all of it."""
    folder = tmp_path / "all"
    shutil.copytree(whole, folder)
    # The run knows its data by their absolute path.
    config = folder / "run/config.yaml"
    config.write_text(config.read_text().replace(str(whole), str(folder)))
    (folder / "run/metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    shutil.copytree(folder / "shards", folder / "damaged")
    (folder / "damaged/train-00000.tar").write_bytes(b"")
    return folder


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_denied_permission_is_told_as_one(case: Case, folder: Path, unprivileged: None) -> None:
    locked = folder / case.locked
    before = locked.stat().st_mode
    locked.chmod(case.mode)
    try:
        result = CliRunner().invoke(main, case.command.replace("{}", str(folder)).split(" "))
    finally:
        locked.chmod(before)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code != 0
    assert result.output.count("Error:") == 1
    error = result.output.partition("Error:")[2]
    assert "permission denied" in result.output.lower()
    assert case.locked in result.output
    assert "\n  " in error, "no remedy"
    for wrong in ("fetch it again", "repairs what it can", "is damaged", "are damaged", "no such"):
        assert wrong not in error.lower()
