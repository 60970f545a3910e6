"""Reports to token ids: the reference code's WordPiece, trained on a set's reports or read from a file.

One shape only: `[PAD] [UNK] [CLS] [MASK]` at ids 0 to 3; lower case, NFKD, accents stripped; split on white space and
punctuation, then around runs of digits; `##` marks a piece that continues a word. Ids are stored as uint16.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from mrm_stream.errors import RecordError, ShardError, SourceError
from mrm_stream.storage.access import refuse_barred
from mrm_stream.storage.files import read_whole
from mrm_stream.storage.paths import AnyPath
from mrm_stream.strict import DuplicateKeyError, parse_json

PAD, UNK, CLS, MASK = 0, 1, 2, 3
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[MASK]")
"""By id."""
CONTINUES = "##"

VOCABULARY_LIMIT = 1 << 16
"""Ids are stored as uint16."""
_LONGEST_WORD = 100
"""Characters; longer ones become [UNK]."""
_TOO_LONG = re.compile(rf"\w{{{_LONGEST_WORD + 1},}}|[^\w\s]{{{_LONGEST_WORD + 1},}}")
REPORT_TOKENS_LIMIT = (1 << 16) - 1
FILE_LIMIT = 32 << 20
"""Bytes in a tokenizer's file; one of 65,536 entries has about 2 MB."""


def train_tokenizer(reports: Iterable[str], vocabulary: int = 30_000) -> Tokenizer:
    """Return a tokenizer trained on these reports: the same for the same reports, in any order and process.

    The library's trainer alone gives other vocabularies from run to run: it numbers the letters that continue words
    in the order of a randomly seeded hash table, and ties between pairs are broken by number
    (huggingface/tokenizers issue 1794). A first pass therefore finds the letters, and the second is given them in
    order.

    Args:
        reports: All of them are held in memory: two passes need them (140 MB for 228,000 of 600 characters).
        vocabulary: Entries at most, special tokens included; fewer come of small sets, as a piece of several letters
            that occurs only once gets none.

    Raises:
        SourceError: There is no text to train on, or `vocabulary` is over 65,536 or too small for the reports' letters.
    """
    if vocabulary > VOCABULARY_LIMIT:
        raise SourceError(
            f"a vocabulary of {vocabulary:,} entries", remedy=f"Ids are 16 bits wide: at most {VOCABULARY_LIMIT:,}."
        )
    # Words too long to be more than [UNK] teach nothing, and the trainer takes minutes over one of a million letters.
    texts = [_TOO_LONG.sub(" ", report) for report in reports]
    letters = _train_once(texts, len(SPECIAL_TOKENS), SPECIAL_TOKENS).keys() - set(SPECIAL_TOKENS)
    if not letters:
        raise SourceError("there are no reports to train a tokenizer on", remedy="Check the reports of the set.")
    if len(letters) + len(SPECIAL_TOKENS) > vocabulary:
        raise SourceError(
            f"a vocabulary of {vocabulary:,} entries cannot hold the {len(letters):,} letters of the reports",
            remedy="Ask for a larger vocabulary.",
        )
    given = (*SPECIAL_TOKENS, *sorted(letters, key=lambda letter: (letter.startswith(CONTINUES), letter)))
    return _build(_train_once(texts, vocabulary, given))


def load_tokenizer(path: AnyPath) -> Tokenizer:
    """Return the tokenizer of a Hugging Face `tokenizers` JSON file.

    Settings of the file that would add, cut or pad tokens are not taken over.

    Raises:
        ShardError: The file cannot be read, or holds a tokenizer of another shape.
    """
    remedy = "Give a tokenizer that `mrm-stream shard` or the reference code made."
    try:
        content = read_whole(path, FILE_LIMIT)
        if len(content) > FILE_LIMIT:
            raise ShardError(f"the tokenizer's file is over {FILE_LIMIT:,} bytes", where=path, remedy=remedy)
        parsed = parse_json(content)
    except OSError as error:
        refuse_barred(error, path)
        raise ShardError(f"the tokenizer cannot be read ({error.strerror})", where=path, remedy=remedy) from error
    except DuplicateKeyError as error:
        # Which one is not told: it may be a word of a report.
        raise ShardError("the tokenizer's file has a key that is given twice", where=path, remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        raise ShardError("the tokenizer's file is not JSON", where=path, remedy=remedy) from error
    fault = _find_fault(parsed)
    if fault:
        raise ShardError(f"not a tokenizer that can be used: {fault}", where=path, remedy=remedy)
    return _build(parsed["model"]["vocab"], parsed["model"]["max_input_chars_per_word"])


def encode_report(tokenizer: Tokenizer, text: str) -> NDArray[np.uint16]:
    """Return the ids of the whole report, shape (tokens,), without special tokens.

    A special token's name in the text is read as the letters that it is made of: `[PAD]` in a report pads nothing.

    Raises:
        RecordError: The report has no tokens, or more than 65,535, or holds surrogates.
    """
    # Set here, as neither the file nor a pickle keeps it.
    tokenizer.encode_special_tokens = True
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecordError("the report is not valid Unicode") from None
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not ids:
        raise RecordError("the report is empty")
    if len(ids) > REPORT_TOKENS_LIMIT:
        raise RecordError("the report has more than 65,535 tokens")
    return np.array(ids, np.uint16)


def continuation_table(tokenizer: Tokenizer) -> NDArray[np.bool_]:
    """Return, for each id, whether its piece continues a word; shape (vocabulary,)."""
    pieces = token_strings(tokenizer, range(tokenizer.get_vocab_size()))
    return np.array([piece.startswith(CONTINUES) for piece in pieces], np.bool_)


def token_strings(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Return the pieces of these ids, `##` kept.

    Raises:
        ValueError: An id is not in the vocabulary.
    """
    pieces = []
    for token_id in ids:
        piece = tokenizer.id_to_token(int(token_id))
        if piece is None:
            raise ValueError(f"token id {token_id} is not in the vocabulary")
        pieces.append(piece)
    return pieces


def _build(vocabulary: dict[str, int], longest_word: int = _LONGEST_WORD) -> Tokenizer:
    """Return a tokenizer of the one shape; words over `longest_word` characters become [UNK]."""
    model = models.WordPiece(vocab=vocabulary, unk_token="[UNK]", max_input_chars_per_word=longest_word)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.NFKD(), normalizers.StripAccents()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=False)]
    )
    if vocabulary:
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _train_once(texts: list[str], vocabulary: int, given: tuple[str, ...]) -> dict[str, int]:
    """Return entry to id; the entries `given` get the first ids."""
    tokenizer = _build({})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(given),
        # The library keeps 1,000 letters by default, and which of equally rare ones is again up to chance.
        limit_alphabet=VOCABULARY_LIMIT * 32,
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def _find_fault(parsed: Any) -> str | None:
    """Return what keeps a parsed tokenizer file from being of the one shape."""
    model = parsed.get("model") if isinstance(parsed, dict) else None
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        return "its model is not WordPiece"
    if model.get("continuing_subword_prefix") != CONTINUES or model.get("unk_token") != "[UNK]":
        return "it does not mark continuing pieces with ## and unknown words with [UNK]"
    if not isinstance(longest := model.get("max_input_chars_per_word"), int) or not 1 <= longest <= 10_000:
        return "max_input_chars_per_word is not between 1 and 10,000"
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or len(vocabulary) > VOCABULARY_LIMIT:
        return f"its vocabulary is absent or has more than {VOCABULARY_LIMIT:,} entries"
    if any(vocabulary.get(token) != token_id for token_id, token in enumerate(SPECIAL_TOKENS)):
        return f"{' '.join(SPECIAL_TOKENS)} are not at ids 0 to 3"
    ids = list(vocabulary.values())
    if not all(isinstance(token_id, int) for token_id in ids) or sorted(ids) != list(range(len(ids))):
        return "its ids do not run from 0 without a gap"
    added = parsed.get("added_tokens")
    if not isinstance(added, list) or any(_added_content(token) not in SPECIAL_TOKENS for token in added):
        return "it adds tokens to its vocabulary"
    ours = parse_json(_build({}).to_str())
    if any(parsed.get(part) != ours[part] for part in ("normalizer", "pre_tokenizer")):
        return "it normalises or splits text otherwise than the reference code"
    return None


def _added_content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else None
