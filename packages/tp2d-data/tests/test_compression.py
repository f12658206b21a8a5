import bz2
import gzip
import lzma

import pyarrow as pa
import pytest
from tp2d_data.sources.compression import CODECS, lines
from tp2d_data.sources.files import FilesSource


def arrow(codec):
    def compress(data):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": arrow("zstd"),
    ".lz4": arrow("lz4"),
}
# Digits that do not compress well, so that half an archive is somewhere in the middle of the lines.
CONTENT = "".join(f'{{"text": "{i * 7919 % 1000003} line {i}"}}\n' for i in range(20_000)).encode()


def test_every_codec_is_tested():
    assert COMPRESS.keys() == CODECS.keys()


@pytest.mark.parametrize("codec", CODECS)
def test_reads_what_was_packed(tmp_path, codec):
    path = tmp_path / f"a.jsonl{codec}"
    path.write_bytes(COMPRESS[codec](CONTENT))
    assert b"".join(lines(path)) == CONTENT
    source = FilesSource(path)
    assert source.count("train") == 20_000
    assert next(source.records("train", ("text",), 19_999)).where == f"{path}, line 20000"


@pytest.mark.parametrize("codec", CODECS)
def test_archives_one_after_the_other_are_one(tmp_path, codec):
    (tmp_path / f"a.txt{codec}").write_bytes(COMPRESS[codec](b"one\ntwo\n") + COMPRESS[codec](b"three\n"))
    assert list(lines(tmp_path / f"a.txt{codec}")) == [b"one\n", b"two\n", b"three\n"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("inner", [".txt", ".jsonl", ".json"])
def test_a_damaged_archive_is_refused_by_name(tmp_path, codec, inner):
    """Cut short, it would otherwise pass for a shorter corpus; no line is made of the part before the cut."""
    packed = COMPRESS[codec](CONTENT if inner != ".json" else b"[" + CONTENT.strip().replace(b"\n", b",\n") + b"]")
    damaged = {"half": packed[: len(packed) // 2], "end": packed[:-3], "none": b"", "else": b"no archive, " * 10}
    for name, content in damaged.items():
        path = tmp_path / f"{name}{inner}{codec}"
        path.write_bytes(content)
        source = FilesSource(path)
        with pytest.raises(ValueError, match=rf"{name}{inner}{codec}, after line \d+: the archive is damaged or cut"):
            list(source.records("train", ("text",)))
        with pytest.raises(ValueError, match="the archive is damaged or cut short"):
            source.count("train")


def test_a_file_that_is_gone_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.txt, after line 0: it cannot be read \(No such file"):
        list(lines(tmp_path / "gone.txt"))


def test_the_mark_of_utf8_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
    assert list(lines(tmp_path / "a.txt")) == [b"one\n", b"\xef\xbb\xbftwo\n"]
