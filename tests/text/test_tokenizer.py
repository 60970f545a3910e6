from __future__ import annotations

import csv
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from mrm_stream.errors import RecordError, ShardError, SourceError
from mrm_stream.text.tokenizer import (
    CLS,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    UNK,
    continuation_table,
    encode_report,
    load_tokenizer,
    token_strings,
    train_tokenizer,
)

REPORTS = [
    "The heart size is normal. No pleural effusion.",
    "Small left pleural effusion; the heart is enlarged.",
    "Lungs are clear. No pneumothorax, no effusion. 12 mm nodule.",
    "Heart size normal, lungs clear.",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(REPORTS, 70)


def _notes(shared: Path) -> list[str]:
    with (shared / "data/covid-cxr/metadata.csv").open(encoding="utf-8", newline="") as file:
        return [row["clinical_notes"] for row in csv.DictReader(file) if row["clinical_notes"].strip()]


def test_special_tokens_have_the_first_ids_and_the_vocabulary_keeps_its_bound(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [PAD, UNK, CLS, MASK] == [0, 1, 2, 3]
    assert tokenizer.get_vocab_size() == 70
    assert train_tokenizer(REPORTS).get_vocab_size() < 90
    # Only the four are special: the letters given to the trainer by the same door are ordinary entries.
    assert len(json.loads(tokenizer.to_str())["added_tokens"]) == 4


def test_training_counts_pairs(tokenizer: Tokenizer) -> None:
    """Words that are frequent become one token, digits and punctuation stand apart, case and accents are gone."""
    pieces = token_strings(tokenizer, encode_report(tokenizer, "Éffusion, HEART12 7"))
    assert pieces[:3] == ["effusion", ",", "heart"]
    assert pieces[3] == "1"
    assert token_strings(tokenizer, encode_report(tokenizer, "肺")) == ["[UNK]"]


_TRAIN = """
import sys
from mrm_stream.text.tokenizer import train_tokenizer
reports = [" ".join(a + b + c for b in "bcdfghjklmnp" for c in "aeiou") for a in "qrstvwxz"] * 2
sys.stdout.write(train_tokenizer(reports[:: int(sys.argv[1])], 300).to_str())
"""


def test_training_gives_the_same_bytes_in_every_process() -> None:
    """The reports are all ties: the library's trainer alone gives another vocabulary in each of these runs."""
    outputs = []
    for seed, threads, step in (("0", "1", "1"), ("1", "2", "1"), ("2", "3", "-1")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", _TRAIN, step], env=environment, capture_output=True, check=True, timeout=60
        )
        outputs.append(run.stdout)
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(json.loads(outputs[0])["model"]["vocab"]) == 300


def test_training_refuses_what_it_cannot_honour() -> None:
    with pytest.raises(SourceError, match="no reports"):
        train_tokenizer([])
    with pytest.raises(SourceError, match="no reports"):
        train_tokenizer([" \n"])
    with pytest.raises(SourceError, match="65,537 entries"):
        train_tokenizer(REPORTS, 65_537)
    with pytest.raises(SourceError, match="a vocabulary of 20 entries cannot hold"):
        train_tokenizer(REPORTS, 20)


def test_a_special_token_s_name_in_a_report_is_text(tokenizer: Tokenizer) -> None:
    for subject in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):  # noqa: S301 - as process pools do
        ids = encode_report(subject, "the [PAD] heart [MASK] size [CLS]")
        assert not np.isin(ids, [PAD, CLS, MASK]).any()


def test_ids_are_the_whole_report_as_uint16(tokenizer: Tokenizer) -> None:
    ids = encode_report(tokenizer, "heart " * 5000)
    assert ids.dtype == np.uint16
    assert ids.shape == (5000,)
    assert len(encode_report(tokenizer, "heart " * 65_535)) == 65_535
    with pytest.raises(RecordError, match="more than 65,535 tokens"):
        encode_report(tokenizer, "heart " * 65_536)


@pytest.mark.parametrize("text", ["", " \n", "\u0301"])
def test_a_report_without_tokens_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(RecordError, match="the report is empty"):
        encode_report(tokenizer, text)


def test_surrogates_are_refused_without_a_word_of_the_report(tokenizer: Tokenizer) -> None:
    with pytest.raises(RecordError, match="not valid Unicode") as caught:
        encode_report(tokenizer, "heart \ud800")
    assert "heart" not in str(caught.value)


def test_threads_may_share_a_tokenizer() -> None:
    tokenizer = train_tokenizer(REPORTS, 70)
    texts = REPORTS * 500
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda text: encode_report(tokenizer, text).tolist(), texts))
    assert results == [encode_report(tokenizer, text).tolist() for text in texts]


def test_continuation_table_marks_the_pieces_that_continue_a_word(tokenizer: Tokenizer) -> None:
    table = continuation_table(tokenizer)
    assert table.dtype == np.bool_
    assert table.shape == (70,)
    assert all(table[token_id] == piece.startswith("##") for piece, token_id in tokenizer.get_vocab().items())
    assert 0 < table.sum() < 66


def test_token_strings_refuses_an_id_that_is_not_there(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="token id 70"):
        token_strings(tokenizer, [5, 70])


def test_saving_and_loading_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str())
    assert load_tokenizer(path).to_str() == tokenizer.to_str()


@pytest.mark.parametrize(("longest", "word"), [(7, "effusion"), (200, "heart" * 30)])
def test_a_file_s_longest_word_is_taken_over(tokenizer: Tokenizer, tmp_path: Path, longest: int, word: str) -> None:
    """Longer ones are [UNK]: with another limit the file's tokenizer gives other ids."""
    file = json.loads(tokenizer.to_str())
    file["model"]["max_input_chars_per_word"] = longest
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert (encode_report(loaded, word).tolist() == [UNK]) == (len(word) > longest)
    assert (encode_report(tokenizer, word).tolist() == [UNK]) == (len(word) > 100)
    assert json.loads(loaded.to_str())["model"]["max_input_chars_per_word"] == longest


def test_a_file_s_truncation_and_padding_are_not_taken_over(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    other = Tokenizer.from_str(tokenizer.to_str())
    other.enable_truncation(4)
    other.enable_padding(length=8)
    other.save(str(path))
    expected = encode_report(tokenizer, REPORTS[0]).tolist()
    assert encode_report(load_tokenizer(path), REPORTS[0]).tolist() == expected


Change = Callable[[dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "not WordPiece": lambda file: file["model"].update(type="BPE"),
    "its model is not WordPiece": lambda file: file.update(model=[]),
    "with ##": lambda file: file["model"].update(continuing_subword_prefix=""),
    "unknown words with": lambda file: file["model"].update(unk_token="<unk>"),
    "max_input_chars_per_word": lambda file: file["model"].update(max_input_chars_per_word=0),
    "are not at ids 0 to 3": lambda file: file["model"]["vocab"].update({"[CLS]": 3, "[MASK]": 2}),
    "more than 65,536 entries": lambda file: file["model"]["vocab"].update({f"w{n}": n for n in range(70, 65_600)}),
    "without a gap": lambda file: file["model"]["vocab"].update({"word": 1000}),
    "ids do not run": lambda file: file["model"]["vocab"].update({"word": "70"}),
    "adds tokens": lambda file: file["added_tokens"].append({"id": 70, "content": "[SEP]"}),
    "normalises or splits": lambda file: file["normalizer"]["normalizers"].pop(),
    "otherwise than the reference": lambda file: file.update(pre_tokenizer={"type": "BertPreTokenizer"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_tokenizer_of_another_shape_is_refused(tokenizer: Tokenizer, tmp_path: Path, what: str) -> None:
    file = json.loads(tokenizer.to_str())
    CHANGES[what](file)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file))
    with pytest.raises(ShardError, match=what) as caught:
        load_tokenizer(path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read"),
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not WordPiece"),
        (b"{}", "not WordPiece"),
        (b" " * (33 << 20), "over 33,554,432 bytes"),
    ],
)
def test_what_is_no_tokenizer_file_is_refused(tmp_path: Path, content: bytes | None, what: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ShardError, match=what):
        load_tokenizer(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_json_gets_past_the_errors(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any part of the file, replaced by anything: refused, or a tokenizer that works."""
    file = json.loads(tokenizer.to_str())
    parts = [(file, key) for key in file] + [(file["model"], key) for key in file["model"]]
    parts += [(file["model"]["vocab"], "heart"), (file["added_tokens"][0], "content"), (file["added_tokens"], 0)]
    part, key = data.draw(st.sampled_from(parts))
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
    part[key] = data.draw(leaf | st.lists(leaf, max_size=3) | st.dictionaries(st.text(max_size=5), leaf, max_size=3))
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_text(json.dumps(file))
    try:
        loaded = load_tokenizer(path)
    except ShardError:
        return
    assert len(encode_report(loaded, REPORTS[0])) > 0
    assert len(continuation_table(loaded)) == 70


def test_the_reference_s_tokenizer_gives_the_ids_that_the_library_gives(shared: Path) -> None:
    path = shared / "data" / "mimic_wordpiece.json"
    ours, theirs = load_tokenizer(path), Tokenizer.from_file(str(path))
    assert ours.get_vocab_size() == 30_000
    notes = _notes(shared)
    assert len(notes) == 511
    for note in notes:
        assert encode_report(ours, note).tolist() == theirs.encode(note, add_special_tokens=False).ids


@settings(max_examples=500, deadline=None)
@given(st.text(min_size=1, max_size=200) | st.text("aeé1 2.,\n#[]_-ÀİΣﬁ½", min_size=1, max_size=80))
def test_on_any_text_the_ids_are_those_of_the_library(shared: Path, text: str) -> None:
    # Their one difference, tested above; Hypothesis finds these names among the constants of the source.
    assume(not any(token in text for token in SPECIAL_TOKENS))
    ours, theirs = _both(shared / "data" / "mimic_wordpiece.json")
    expected = theirs.encode(text, add_special_tokens=False)
    try:
        ids = encode_report(ours, text)
    except RecordError:
        assert expected.ids == []
    else:
        assert ids.tolist() == expected.ids
        assert token_strings(ours, ids) == expected.tokens


def _both(path: Path, cache: dict[Path, tuple[Tokenizer, Tokenizer]] = {}) -> tuple[Tokenizer, Tokenizer]:  # noqa: B006
    if path not in cache:
        cache[path] = load_tokenizer(path), Tokenizer.from_file(str(path))
    return cache[path]


def test_a_tokenizer_trained_on_the_real_notes_can_spell_them(shared: Path) -> None:
    notes = _notes(shared)
    tokenizer = train_tokenizer(notes, 2000)
    ids = np.concatenate([encode_report(tokenizer, note) for note in notes])
    assert tokenizer.get_vocab_size() == 2000
    assert (ids == UNK).mean() < 1e-3
    assert ids.max() < 2000
