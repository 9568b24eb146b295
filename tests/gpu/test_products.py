"""Products on a real device: cuSPARSELt, cuBLAS and cuBLASLt compute what NumPy does. Skipped where there is none.

On a machine with a GPU, this comes first, then `tfmot-asp measure -o mine.json`.
"""

import numpy as np
import pytest

from tfmot_asp.hardware import estimate, measure, sparse_device

REASON = sparse_device.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no GPU: {REASON}")


@pytest.fixture(scope="module")
def device():
    return sparse_device.SparseDevice()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 64), (64, 128, 32), (1568, 512, 1024)])
def test_both_libraries_compute_the_product(device, precision, m, n, k):
    generator = np.random.default_rng(0)
    weight, x = generator.integers(-3, 4, (n, k)), generator.integers(-3, 4, (m, k))
    weight[:, 1::4] = weight[:, 2::4] = 0
    for result in device.run(precision, weight, x):
        np.testing.assert_allclose(result.astype(np.int64), x @ weight.T, rtol=1e-3)  # sums above 2,048 are rounded
    weight[0, :3] = 1
    with pytest.raises(RuntimeError, match="not 2:4"):
        device.run(precision, weight, x)


@pytest.mark.parametrize(("precision", "kinds"), [("fp16", ("float16", "float16")), ("int8", ("int8", "int32"))])
@pytest.mark.parametrize(("m", "n", "k"), [(16, 32, 64), (64, 128, 32), (1568, 512, 1024)])
def test_the_dense_search_computes_the_product(device, precision, kinds, m, n, k, caplog):
    import cupy

    generator = np.random.default_rng(0)
    weight, x = generator.integers(-3, 4, (n, k)), generator.integers(-3, 4, (m, k))
    with device._stream:
        on_device = [cupy.asarray(values.astype(kinds[0])) for values in (weight, x)]
        expected = cupy.asarray((x @ weight.T).astype(kinds[1]))
        times = device._searched_dense(precision, *on_device, expected, [-1.0])  # compares, in int8 to the last bit
        assert min(times) > 0
        with pytest.raises(RuntimeError, match="cuBLASLt's result differs"):
            device._searched_dense(precision, *on_device, 2 * expected, [-1.0])
    assert caplog.text == ""


def test_a_table_is_measured_and_taken(tmp_path):
    sizes = [(m, n, 1024) for m in (32, 256, 2048, 4096) for n in (256, 1024)]
    table = measure(tmp_path / "mine.json", products=sizes)
    assert all(0 < row.sparse_us <= row.sparse_default_us for row in table.rows)
    assert all(0 < row.dense_us <= row.dense_default_us for row in table.rows)
    assert estimate(2048, 1024, 1024, gpu=tmp_path / "mine.json").dense_us > 0
