"""Which leads and segments are drawn: exact numbers, uniform, independent, repeatable."""

import pytest
import torch

from kmerl.masking import all_tokens, draw_leads, draw_tokens, masked_not_dropped, n_kept_segments


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_published_numbers_of_visible_tokens():
    """75 to 225 of 1,200 at 500 Hz, 10 s, patches of 100 ms; the same number in every kept lead."""
    seen = set()
    for seed in range(30):
        visible = draw_tokens(8, 100, False, [9, 10, 11], 0.25, generator=generator(seed))
        n_leads = visible.leads.sum(1)
        assert (n_leads == n_leads[0]).all() and visible.mask is None
        assert visible.index.shape == (8, 75 * n_leads[0])
        for row, leads in zip(visible.index, visible.leads, strict=True):
            assert len(set(row.tolist())) == len(row)
            assert torch.bincount(row // 100, minlength=12).tolist() == (75 * leads).tolist()
        seen.add(visible.index.shape[1])
    assert seen == {75, 150, 225}


def test_number_of_masked_leads_is_uniform_and_leads_are_equally_often_kept():
    rng = generator()
    counts = torch.stack([draw_leads(16, "kmerl", [9, 10, 11], generator=rng).sum(0) for _ in range(600)])
    share = counts.sum(0) / counts.sum()
    assert (share - 1 / 12).abs().max() < 0.01
    numbers = torch.bincount(counts.sum(1) // 16, minlength=4)
    assert numbers[0] == 0 and numbers[1:].min() > 150  # 200 each


def test_segments_differ_between_leads_and_records():
    index = draw_tokens(4, 20, False, [9], 0.5, generator=generator()).index.view(12, 10) % 20
    assert len({tuple(row) for row in index.tolist()}) == 12
    many = draw_tokens(3000, 20, False, [11], 0.25, generator=generator()).index % 20
    assert (torch.bincount(many.flatten(), minlength=20) / 3000 - 0.75).abs().max() < 0.04


def test_rules():
    assert draw_leads(5, "none").all()
    random = draw_leads(4000, "random", generator=generator()).sum(1)
    assert random.min() == 1 and random.max() == 12
    assert (torch.bincount(random, minlength=13)[1:] / 4000 - 1 / 12).abs().max() < 0.02
    assert draw_leads(5, "kmerl", [9], p_full=1.0).all()
    assert (draw_leads(5, "kmerl", [0]).sum(1) == 12).all()
    full = [bool(draw_leads(2, "kmerl", [11], 0.25, generator=g).all()) for g in [generator()] for _ in range(800)]
    assert 0.2 < sum(full) / 800 < 0.3
    with pytest.raises(ValueError, match=r"model\.lead_masking: 'all'"):
        draw_leads(5, "all")
    with pytest.raises(ValueError, match=r"model\.masked_leads: \[12\]"):
        draw_leads(5, "kmerl", [12])


def test_draws_follow_torchs_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return draw_tokens(8, 20, False, [9, 10, 11], 0.25).index

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3)[:, :15], draw(4)[:, :15])


def test_all_tokens_and_joint_tokens():
    leads = torch.zeros(12, dtype=torch.bool)
    leads[[1, 7]] = True
    assert all_tokens(2, 3, False, leads).index.tolist() == [[3, 4, 5, 21, 22, 23]] * 2
    assert all_tokens(2, 3, False).index.tolist() == [list(range(36))] * 2
    assert all_tokens(2, 3, True, leads).index.tolist() == [[0, 1, 2]] * 2
    joint = draw_tokens(4, 20, True, [9, 10, 11], 0.25, generator=generator())
    assert joint.index.shape == (4, 15) and joint.index.max() < 20
    assert set(joint.leads.sum(1).tolist()) <= {1, 2, 3}
    for wrong in (torch.zeros(12, dtype=torch.bool), torch.ones(11, dtype=torch.bool), torch.ones(12)):
        with pytest.raises(ValueError, match="at least one True"):
            all_tokens(2, 3, False, wrong)


def test_masked_instead_of_dropped_is_the_same_choice():
    visible = draw_tokens(4, 20, False, [9, 10, 11], 0.25, generator=generator())
    masked = masked_not_dropped(visible, 240)
    assert masked.index.shape == masked.mask.shape == (4, 240)
    assert [set(row.nonzero()[:, 0].tolist()) for row in masked.mask] == [set(row.tolist()) for row in visible.index]


@pytest.mark.parametrize(("m", "ratio", "kept"), [(100, 0.25, 75), (10, 0.25, 8), (20, 0.5, 10), (1, 0.9, 1)])
def test_kept_segments(m, ratio, kept):
    assert n_kept_segments(m, ratio) == kept
