"""Products with a model's matrices in the C library say what torch says, and touch nothing else."""

import pytest
import torch
from torch import nn

from ember.engine.operators.native_modules import use_library
from tests.cpu_kernels.conftest import compiled  # noqa: F401
from tests.cpu_kernels.test_native_forward import build  # noqa: F401


class Derived(nn.Linear):
    pass


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@torch.inference_mode()
def test_products_are_torchs(dtype, close, build):  # noqa: F811
    torch.manual_seed(0)
    plain, biased, odd = nn.Linear(96, 39, bias=False), nn.Linear(64, 5), nn.Linear(33, 8)
    model = nn.ModuleList([plain, biased, odd, Derived(64, 8), nn.Linear(64, 3)]).to(dtype)
    assert use_library(model) == 2 and use_library(model) == 0
    for module in (plain, biased):
        weight = module.weight.double()
        for rows in (1, 2, 3, 5, 6, 8, 13, 32, 33, 129):  # the library's, and torch's
            for x in (torch.randn(rows, module.in_features), torch.randn(module.in_features, rows).t()):
                given = x.to(dtype)[None]
                expected = given.double() @ weight.t() + (0 if module.bias is None else module.bias.double())
                found = module(given)
                assert found.dtype == dtype and found.shape == (1, rows, module.out_features)
                torch.testing.assert_close(found.double(), expected, rtol=close, atol=close)
    assert plain(torch.empty(0, 96, dtype=dtype)).shape == (0, 39)
    with pytest.raises(RuntimeError):
        plain(torch.randn(4, 48, dtype=dtype))
    with torch.no_grad():
        plain.weight.mul_(2)
    x = torch.randn(3, 96, dtype=dtype)
    torch.testing.assert_close(plain(x), nn.functional.linear(x, plain.weight), rtol=close, atol=close)
