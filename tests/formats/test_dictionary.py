from __future__ import annotations

import random

import pytest

from mrm_stream.formats.dictionary import ReportCodec, learn_dictionary


@pytest.mark.parametrize("count", [0, 1, 3, 40, 3000])
def test_the_dictionary_is_fixed_by_the_reports_and_loses_nothing(count: int) -> None:
    draw = random.Random(count)
    words = ("no acute process", "small left effusion", "is seen", "in the lower lobe", "unchanged", "opacity")
    reports = [f"{number}: {' '.join(draw.choices(words, k=40))}, naïve." for number in range(count)]
    dictionary = learn_dictionary(iter(reports))
    assert learn_dictionary(reports) == dictionary
    codec = ReportCodec(dictionary)
    frames = [codec.compress(report) for report in reports]
    assert [codec.decompress(frame) for frame in frames] == reports
    if count == 3000:
        assert sum(map(len, frames)) < 0.6 * sum(map(len, reports))
        with pytest.raises(ValueError, match="damaged"):
            ReportCodec(b"another").decompress(frames[0])


def test_a_frame_that_would_fill_the_memory_is_refused() -> None:
    codec = ReportCodec(b"")
    with pytest.raises(ValueError, match="larger"):
        codec.decompress(codec.compress("a" * ((1 << 20) + 1)))
