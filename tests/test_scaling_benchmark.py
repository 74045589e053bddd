"""The formulas of benchmarks/scaling.py against examples that can be computed by hand."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))
import scaling  # noqa: E402


def test_steps_schedules_and_costs():
    assert scaling.exchange_seconds(1_000_000, 1, 1.0) == 0
    assert scaling.exchange_seconds(1_000_000, 4, 1.0) == pytest.approx(2 * 3 / 4 * 4e6 / 1e9)
    assert scaling.step_seconds(3.0, 1.9) == 3.0  # hidden by a backward pass of 2 s
    assert scaling.step_seconds(3.0, 2.5) == pytest.approx(3.5)
    assert scaling.schedule(8) == (6e-5, 20_000, 1500)
    assert scaling.schedule(32) == pytest.approx((1.2e-4, 20_000, 1500))  # that of the 4xb8 configs
    assert scaling.schedule(128)[1] * 128 == 640_000


def test_attention_is_counted():
    """B0 has two blocks in each stage; their attention has as many keys as the last stage has tokens."""
    tokens, channels = (16384, 4096, 1024, 256), (32, 64, 160, 256)
    attention = sum(2 * 2 * n * 256 * c for n, c in zip(tokens, channels))
    without = 4.0e9  # of the convolutions and linear layers, as mmseg's tools count them
    assert scaling.forward_operations(0, 512) / 2 == pytest.approx(without + attention, rel=0.02)
