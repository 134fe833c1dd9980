"""`shared.runs.plan`: memory of a training step."""

import pytest

from shared.runs.plan import memory_bytes, memory_gb


def test_zero_memory_against_hand_counts():
    total, trained = 1000, 100
    assert memory_bytes(total, trained, 0, 8) == 2 * 1000 + 2 * 100 + 12 * 100
    assert memory_bytes(total, trained, 1, 8) == 2 * 1000 + 2 * 100 + 12 * 100 / 8
    assert memory_bytes(total, trained, 2, 8) == 2 * 1000 + (2 * 100 + 12 * 100) / 8
    assert memory_bytes(total, trained, 3, 8) == (2 * 1000 + 2 * 100 + 12 * 100) / 8
    assert memory_bytes(total, trained, 0, 1, "fp32") == 4 * 1000 + 12 * 100
    for stage in range(4):
        assert memory_bytes(total, trained, stage, 1) == memory_bytes(total, trained, 0, 1)
    # Rajbhandari et al. 2020, figure 1: 7.5 B trained parameters on 64 GPUs: 120, 31.4, 16.6, 1.88 GB
    measured = [memory_bytes(7.5e9, 7.5e9, stage, 64) / 1e9 for stage in range(4)]
    assert measured == pytest.approx([120, 31.4, 16.6, 1.88], abs=0.05)
    # Argus reference: full tuning of 70B costs 1,120 GB; 70B as LoRA under ZeRO-3 17.5 GB per GPU of weights
    assert memory_bytes(70e9, 70e9, 0, 1) == 1120e9
    assert memory_bytes(70e9, 0, 3, 8) == 17.5e9
    with pytest.raises(ValueError, match="neither bf16 nor fp32"):
        memory_bytes(total, trained, 0, 1, "int8")


def test_memory_where_what_is_not_trained_stays_whole():
    assert [memory_gb(10**9, 5 * 10**8, stage, 8) for stage in range(4)] == [18, 7.5, 5.75, 4]
    assert memory_gb(10**9, 5 * 10**8, 3, 1) == 18
