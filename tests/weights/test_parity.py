"""The same weights give the same values here as in the libraries they come from.

What the other libraries gave is kept in goldens, see tests/goldens/README.md. The weights are drawn
anew from names and shapes, ours by way of the tables of names; so a golden also holds the tables to
the names and shapes of the other library's file.
"""

import numpy as np
import parity
import pytest

CASES = [
    pytest.param(case, id=case.name, marks=() if case.quick else pytest.mark.exhaustive)
    for case in parity.CASES
]


@pytest.mark.parametrize("case", CASES)
def test_the_same_weights_give_the_same_values(case):
    golden = parity.Golden.read(parity.golden_path(case))
    model = case.build()
    variables, names = parity.our_tensors(case, model, golden.variances)

    ignored = parity.layout(case, model).ignored
    assert names == {k: v for k, v in golden.names.items() if not k.endswith(ignored)}

    assert golden.outputs.keys() == set(case.sizes)
    for size, expected in golden.outputs.items():
        got = parity.our_outputs(model, variables, parity.draw_image(size))
        errors = parity.errors(parity.digest(got), expected)
        # In the order of the data, so that the first to fail is where the fault is.
        for name, error in sorted(errors.items(), key=lambda item: item[0] == "logits"):
            assert error <= parity.TOLERANCE, (name, size)


def test_what_is_drawn_is_at_unit_scale_and_depends_on_the_name():
    image = parity.draw_image((75, 97))
    assert image.shape == (2, 75, 97, 3)
    np.testing.assert_allclose(image.std(), np.sqrt(1.25), rtol=0.05)
    kernel = parity.draw("a.weight", (64, 32, 3, 3), {})
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (32 * 9)), rtol=0.01)
    np.testing.assert_array_equal(kernel, parity.draw("a.weight", (64, 32, 3, 3), {}))
    assert np.all(kernel != parity.draw("b.weight", (64, 32, 3, 3), {}))
    statistics = parity.draw("a.running_var", (1000,), {"a": 4.0})
    np.testing.assert_allclose(statistics.mean(), 4, rtol=0.05)
    assert statistics.min() > 2


def test_errors_are_in_units_of_the_standard_deviation():
    expected = np.array([[10.0, 30.0], [10.0, 30.0]], np.float32)
    got = expected + np.array([[0, 0.5], [0, -1]], np.float32)
    assert parity.errors({"logits": got}, {"logits": expected}) == {"logits": 0.1}
    assert np.isnan(parity.errors({"logits": got * np.nan}, {"logits": expected})["logits"])
