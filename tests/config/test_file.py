from __future__ import annotations

from pathlib import Path

import pytest

from mrm_stream.config.file import dump_config, load_config, portable_settings, with_absolute_paths, with_paths
from mrm_stream.config.pretrain import PretrainConfig
from mrm_stream.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_an_empty_file_gives_the_reference_recipe(tmp_path: Path) -> None:
    assert load_config(PretrainConfig, write(tmp_path, "")) == PretrainConfig()


def test_the_paper_recipe_is_a_set_of_defaults_that_a_setting_overrides(tmp_path: Path) -> None:
    config = load_config(PretrainConfig, write(tmp_path, "recipe: paper\nmethod: {token_masking: word}"))
    method = config.method
    assert (method.pixel_target, method.report_loss_over, method.token_masking) == ("pixels", "masked", "word")
    assert config.model.positions == "mae"
    assert load_config(PretrainConfig, None).model.positions == "reference"


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {batch_size: 64, epochs: 50}")
    optim = load_config(PretrainConfig, path, ["optim.batch_size=32", "optim.betas=[0.8, 0.9]"]).optim
    assert (optim.batch_size, optim.epochs, optim.betas) == (32, 50.0, (0.8, 0.9))


def test_of_two_overrides_of_one_setting_the_last_counts() -> None:
    assert load_config(PretrainConfig, None, ["seed=1", "seed=2"]).seed == 2
    assert (
        load_config(PretrainConfig, None, ["optim={epochs: 50, warmup_epochs: 1}", "optim.epochs=60"]).optim.epochs
        == 60
    )
    assert load_config(PretrainConfig, None, ["optim.epochs=60", "optim={epochs: 50}"]).optim.epochs == 50
    with pytest.raises(ConfigError, match="--set data: the key 'threads' is given twice in line 1\n"):
        load_config(PretrainConfig, None, ["data={threads: 1, threads: 2}"])


def test_an_override_of_a_section_keeps_what_the_file_says_of_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {batch_size: 64}\nmodel: {image_encoder: {width: 96}}\ndata: {mixture: {a: 0.2}}")
    config = load_config(
        PretrainConfig, path, ["optim={epochs: 50}", "model={image_encoder: {depth: 2}}", "data.mixture={b: 0.3}"]
    )
    assert (config.optim.batch_size, config.optim.epochs) == (64, 50)
    assert (config.model.image_encoder.width, config.model.image_encoder.depth) == (96, 2)
    # A setting, not a section: all of it is given anew.
    assert config.data.mixture == {"b": 0.3}
    assert load_config(PretrainConfig, path, ["data.mixture.b=0.3"]).data.mixture == {"a": 0.2, "b": 0.3}


def test_an_override_does_not_reach_what_an_alias_repeats(tmp_path: Path) -> None:
    path = write(tmp_path, "model:\n  image_encoder: &one {width: 96, heads: 4}\n  image_decoder: *one")
    model = load_config(PretrainConfig, path, ["model.image_decoder.width=48"]).model
    assert (model.image_encoder.width, model.image_decoder.width) == (96, 48)


def test_a_section_that_names_some_settings_keeps_the_defaults_of_its_place() -> None:
    model = load_config(PretrainConfig, None, ["model.image_decoder.depth=2"]).model
    assert (model.image_decoder.width, model.image_decoder.depth, model.image_encoder.depth) == (768, 2, 12)


def test_an_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    assert load_config(PretrainConfig, write(tmp_path, "optim: {base_lr: 1e-3}")).optim.base_lr == 1e-3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {batchsize: 8}", "unknown setting optim.batchsize\n  Did you mean optim.batch_size?"),
        ("model: {image_encoder: {widht: 8}}", "Did you mean model.image_encoder.width?"),
        ("modle: {}", "Did you mean model?"),
        ("data: {zzzzzz: 1}", "Known here: shards,"),
        ("data: {threads: 1.5}", "data.threads must be a whole number, not 1.5"),
        ("data: {threads: true}", "data.threads must be a whole number, not True"),
        ("optim: {base_lr: fast}", "optim.base_lr must be a number, not 'fast'"),
        ("optim: {base_lr: .nan}", "optim.base_lr must be a number"),
        ("optim: {epochs: true}", "optim.epochs must be a number, not True"),
        ("data: {crop_area: [0.2, yes]}", "data.crop_area must be a number, not True"),
        ("data: {mixture: {a: on}}", "data.mixture.a must be a number, not True"),
        ("optim: {betas: [0.9]}", "optim.betas must be a list of 2 numbers"),
        ("method: {pooling: average}", "method.pooling must be 'mean' or 'max', not 'average'"),
        ("data: 3", "data is a section"),
        ("- a", "must hold sections"),
        ("data: [", "cannot be read as YAML"),
        ("recipe: mine", "unknown recipe 'mine'\n  Choose one of: reference, paper."),
        ("data: {hr_size: 449}", "data.hr_size must be a multiple of lr_size"),
        ("model: {image_encoder: {heads: 5}}", "heads (5) must divide the width (768)"),
        ("data: {report_length: 101}", "data.report_length is over model.report_decoder.positions (100)"),
        ("method: {image_loss_weight: 0, report_loss_weight: 0}", "not both 0"),
        ("optim: {warmup_epochs: 300}", "optim.warmup_epochs must be between 0 and epochs"),
        ("engine: {zero_stage: 4}", "engine.zero_stage must be 0, 1, 2 or 3"),
        ("engine: {precision: fp32, communication: bf16}", "engine.communication must be fp32 where"),
        ("seed: -1", "seed must be between"),
        ("data: {mean: 128}", "data.mean is of grey values in [0, 1]\n  128 of 255 is 0.502."),
        ("data: {mean: 32767.5}", "32767.5 of 65535 is 0.5."),
        ("data: {mean: -0.1}", "data.mean is of grey values in [0, 1]"),
        ("data: {std: 62.4}", "data.std is of grey values in [0, 1]\n  62.4 of 255 is 0.2447."),
        ("data: {std: 0}", "data.std is of grey values in [0, 1]"),
        ("data: {crop_area: [1.0e-9, 1]}", "data.crop_area must be two numbers in [0.001, 1]"),
        ("data: {crop_ratio: [1.0e-300, 1.0e+300]}", "data.crop_ratio must be two numbers in [0.1, 10]"),
        ("data: {cache_gb: 1.0e+300}", "data.cache_gb must be positive, and at most 1e9"),
        ("data: {hr_size: 224000000}", "data.hr_size must be at most 16,384 pixels"),
        ("data: {threads: 100000}", "data.threads must be between 1 and 1,024"),
        ("data: {prefetch: 0}", "data.prefetch must be between 1 and 1,024"),
        ("data: {mixture: {a: .inf}}", "data.mixture.a must be a number"),
        ("model: {image_encoder: {width: 12000000}}", "width must be at most 16,384"),
        ("model: {image_encoder: {depth: 100000}}", "and depth 1,000"),
        ("model: {report_decoder: {positions: 1000000}}", "positions must be at most 16,384"),
        ("optim: {epochs: .inf}", "optim.epochs must be a number"),
        ("optim: {epochs: 1.0e+300}", "optim.epochs must be positive, and at most a million"),
        ("optim: {batch_size: 100000000000000000000}", "optim.batch_size must be between 1 and 16,777,216"),
        ("optim: {min_lr: 0.1}", "optim.min_lr is above the rate that it is to fall from (0.00015)"),
        ("optim: {batch_size: 64, min_lr: 1.0e-4}", "is above the rate that it is to fall from (3.75e-05)"),
        ("data: {window: 0}", "data.window must be at least 1"),
        ("data: {mixture: {a: 0}}", "data.mixture shares must be positive"),
        ("data: {max_bad_samples: -1}", "data.max_bad_samples must not be negative"),
        ("data: {lr_size: 0}", "data.lr_size must be at least 1"),
        ("data: {flip: 1.1}", "data.flip is a chance: 0 to 1"),
        ("data: {report_length: 2}", "data.report_length must be at least 3"),
        ("model: {image_encoder: {depth: 0}}", "width, depth and heads must be at least 1"),
        ("model: {report_decoder: {feed_forward: 0}}", "model.report_decoder sizes must be at least 1"),
        ("model: {report_decoder: {heads: 5}}", "model.report_decoder heads (5) must divide the width (384)"),
        ("model: {report_decoder: {dropout: 1}}", "model.report_decoder.dropout must be in [0, 1)"),
        ("model: {patch: 0}", "model.patch must be at least 1"),
        ("model: {patch: 15}", "model.patch must divide data.lr_size (224)"),
        ("model: {image_decoder: {width: 6}}", "model.image_decoder.width must be a multiple of 4"),
        ("method: {mask_ratio: 1}", "method.mask_ratio must be in [0, 1)"),
        ("method: {report_mask_ratio: 1}", "method.report_mask_ratio must be in [0, 1)"),
        ("method: {image_loss_weight: -1}", "method.image_loss_weight weights must be >= 0, not both 0"),
        ("optim: {micro_batch_size: 0}", "optim.micro_batch_size must be at least 1"),
        ("optim: {base_lr: 0}", "optim.base_lr must be positive, min_lr not negative"),
        ("optim: {min_lr: -1}", "optim.base_lr must be positive, min_lr not negative"),
        ("optim: {betas: [0.9, 1]}", "optim.betas must be in [0, 1)"),
        ("optim: {weight_decay: -1}", "optim.weight_decay must not be negative"),
        ("optim: {gradient_clip: -1}", "optim.gradient_clip must not be negative"),
        ("run: {connect_s: 0}", "run.connect_s must be positive"),
        ("run: {log_every: 0}", "run.log_every must be at least 1"),
        ("run: {save_every: 0}", "run.save_every must be at least 1"),
        ("run: {keep: 0}", "run.keep must be at least 1"),
        ("run: {out: 's3://bucket/run'}", "run.out is a URL, where a local path is needed"),
        ("run: {init: 'https://host/mae.pth'}", "run.init is a URL"),
        ("data: {cache: 's3:/bucket'}", "data.cache is a URL"),
        ("run: {out: ~/run}", "run.out begins with ~"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_lies_on_the_edge_of_its_range_is_taken() -> None:
    for override in (
        "seed=0",
        "data.flip=0",
        "data.flip=1",
        "data.max_bad_samples=0",
        "data.window=1",
        "data.report_length=3",
        "data.crop_area=[0.001, 1]",
        "data.crop_ratio=[0.1, 10]",
        "data.cache_gb=1e9",
        "model.report_decoder.dropout=0",
        "method.mask_ratio=0",
        "method.report_mask_ratio=0",
        "method.image_loss_weight=0",
        "optim.batch_size=1",
        "optim.micro_batch_size=1",
        "optim.warmup_epochs=0",
        "optim.betas=[0, 0]",
        "optim.weight_decay=0",
    ):
        load_config(PretrainConfig, None, [override])


def test_min_lr_may_be_as_high_as_the_peak_of_a_large_batch() -> None:
    assert load_config(PretrainConfig, None, ["optim.batch_size=512", "optim.min_lr=3.0e-4"]).optim.min_lr == 3e-4


SENTENCE = "The lungs are clear of Mrs Meyer"


@pytest.mark.parametrize(
    "text",
    [
        f"EXAMINATION: chest\n{SENTENCE}\nFINDINGS: {SENTENCE}: none\n",
        f"{SENTENCE}: none",
        f"data: {{{SENTENCE}: none}}",
        f"data: {{threads: {SENTENCE}}}",
        f"recipe: {SENTENCE}",
        f"'{SENTENCE}",
        f"{SENTENCE}",
        f"! {SENTENCE}: [",
        "seed: *Meyer",
        "seed: !Meyer 3",
        "seed: !it's!Meyer 3",
        "%Meyer",
        f"{SENTENCE}\x00",
    ],
)
def test_a_report_that_is_given_by_mistake_is_not_repeated(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, write(tmp_path, text))
    for word in ("Meyer", "lungs"):
        assert word not in str(caught.value)
        assert word not in str(caught.value.__cause__)


def test_a_mistake_in_yaml_is_placed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mapping values are not allowed here, line 2, column 7"):
        load_config(PretrainConfig, write(tmp_path, "seed: 3\n a b c: d"))


@pytest.mark.parametrize("text", ["seed: 2024-99-99", f"seed: {'[' * 5000}", "\xff"])
def test_what_trips_the_parser_is_an_error_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        load_config(PretrainConfig, path)


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["optim.batchsize=8"], "--set optim.batchsize"),
        (["optim={batchsize: 8}"], "--set optim.batchsize"),
        (["optim.base_lr=fast"], "--set optim.base_lr"),
        (["optim.batch_size=0"], "--set optim.batch_size"),
        (["data=3"], "--set data"),
        (["recipe=mine"], "--set recipe"),
        (["seed=-1"], "--set seed"),
        # It is the file's warmup_epochs that is now too much.
        (["optim.epochs=5"], "{file} and --set"),
        (["data.threads=2", "engine.zero_stage=0", "method.pooling=average"], "--set method.pooling"),
    ],
)
def test_a_mistake_in_an_override_is_not_blamed_on_the_file(tmp_path: Path, overrides: list[str], where: str) -> None:
    path = write(tmp_path, "optim: {warmup_epochs: 10, epochs: 20}")
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path, overrides)
    assert caught.value.where == where.format(file=path)


def test_the_file_is_blamed_for_its_own_mistake_beside_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {batchsize: 8}\nmodle: {}")
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, path, ["optim.batch_size=8"])
    assert caught.value.where == str(path)


def test_places_become_absolute_or_empty() -> None:
    config = load_config(PretrainConfig, None, ["data.shards=shards/a", "run.init=mae.pth", "seed=3"])
    absolute = with_absolute_paths(config)
    assert (absolute.data.shards, absolute.run.init) == (str(Path.cwd() / "shards/a"), str(Path.cwd() / "mae.pth"))
    assert absolute.run.out == ""
    assert with_absolute_paths(load_config(PretrainConfig, None, ["data.shards=s3://b/a"])).data.shards == "s3://b/a"
    assert portable_settings(absolute) == dump_config(load_config(PretrainConfig, None, ["seed=3"]))


def test_a_place_that_is_given_stands_in_the_file_s_stead_though_it_is_empty() -> None:
    """As where a shell's variable is not set: the run must not go to the file's directory, or train on its set."""
    config = load_config(PretrainConfig, None, ["data.shards=shards/a", "run.out=runs/a"])
    for shards, out in ((None, None), ("", None), (None, ""), ("shards/b", "runs/b")):
        placed = with_paths(config, shards=shards, out=out)
        assert placed.data.shards == ("shards/a" if shards is None else shards)
        assert placed.run.out == ("runs/a" if out is None else out)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(PretrainConfig, tmp_path / "absent.yaml")


@pytest.mark.parametrize("override", ["optim.batch_size", "=3", "seed.a=3", "seed=[", "optim.batch=8"])
def test_a_wrong_override_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(PretrainConfig, None, [override])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_dumped_configuration_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(PretrainConfig, path)
    assert load_config(PretrainConfig, write(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("name", ["recipes", "on_resume"])
def test_what_a_class_knows_of_its_settings_is_no_setting(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting {name}"):
        load_config(PretrainConfig, None, [f"{name}=paper"])
    (tmp_path / "a.yaml").write_text(f"{name}: paper\n")
    with pytest.raises(ConfigError, match=f"unknown setting {name}"):
        load_config(PretrainConfig, tmp_path / "a.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, None, ["zzz=1"])
    assert caught.value.remedy == "Known here: seed, data, optim, engine, run, recipe, model, method."
