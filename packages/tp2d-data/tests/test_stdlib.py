import ast
import json
from itertools import islice

import pytest
from tp2d_data.sources.holdout import is_held_out
from tp2d_data.sources.stdlib import VALIDATION_SHARE, StdlibSource, _docstrings, stdlib_documents


def test_docstrings_in_the_order_of_the_source():
    source = '''
"""module"""
if True:
    class A:
        "class"
        x = "no docstring"
        def f(self):
            """method"""
            async def g():
                """inner"""
else:
    def h():
        """after"""
try:
    pass
except ValueError:
    def i():
        """handler"""
'''
    assert list(_docstrings(ast.parse(source))) == ["module", "class", "method", "inner", "after", "handler"]


def test_splits_hold_every_document_once(builtin_cache):
    """The cached splits are the documents in their order, and which side one is on follows from its content."""
    source = StdlibSource(builtin_cache)
    train, validation = (
        [record.values[0] for record in source.records(split, ("text",))] for split in ("train", "validation")
    )
    assert not any(is_held_out(text, VALIDATION_SHARE) for text in train)
    assert all(is_held_out(text, VALIDATION_SHARE) for text in validation)
    beginning = [text for text in islice(stdlib_documents(), 300) if not is_held_out(text, VALIDATION_SHARE)]
    assert train[: len(beginning)] == beginning
    assert source.count("train") == len(train)
    # Versions of Python differ; 3.11 has 8,683 documents of 2.25 million characters.
    assert 1_500_000 < sum(map(len, train + validation)) < 4_000_000
    assert 0.03 < len(validation) / len(train) < 0.07


def test_reads_as_the_same_on_every_start(builtin_cache):
    first, second = (StdlibSource(builtin_cache).identity("train") for _ in range(2))
    assert first == second != StdlibSource(builtin_cache).identity("validation")
    json.dumps(first)


def test_refuses_another_field():
    with pytest.raises(ValueError, match="builtin:stdlib has no field 'body'; it has text"):
        StdlibSource().check("train", ("body",))
