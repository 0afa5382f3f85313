"""What the page on building blocks says is what its code prints."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "building-blocks.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_every_line_of_code_prints_what_it_says():
    # The fences would be taken for output.
    source = re.sub(r"^```.*$", "", TEXT, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(source, {}, PAGE.name, str(PAGE), 0)
    assert len(test.examples) > 50
    failures: list[str] = []
    with np.printoptions():
        result = doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert result.attempted == len(test.examples)
    assert not result.failed, "".join(failures)


@pytest.mark.parametrize(
    "block", re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
)
def test_every_block_of_code_is_run(block):
    assert doctest.DocTestParser().get_examples(block)
    for line in block.splitlines():
        assert len(line) <= 110
