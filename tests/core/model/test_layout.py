"""Sequences in one row and apart again."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from support import CPU

from grr_coca.model.attention import ROUND_TO, pack_lengths


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6), room=st.integers(0, 3))
def test_packing_drops_the_padding_and_puts_it_back(lengths, room):
    longest = max(lengths) + room
    layout = pack_lengths(torch.tensor(lengths), longest, CPU)
    padded = torch.arange(len(lengths) * longest * 2.0).reshape(len(lengths), longest, 1, 2)
    packed = layout.unpad(padded)
    real, more = packed[0].split([layout.num_tokens, packed.shape[1] - layout.num_tokens])
    assert torch.equal(real, torch.cat([row[:length] for row, length in zip(padded, lengths, strict=True)]))
    assert packed.shape[1] % ROUND_TO == 0
    assert len(more) < ROUND_TO
    assert torch.equal(more, padded[0, 0].expand_as(more))
    apart = layout.pad(packed)
    assert apart.shape == padded.shape
    for row, original, length in zip(apart, padded, lengths, strict=True):
        assert torch.equal(row[:length], original[:length])
        assert torch.equal(row[length:], original[length - 1].expand(longest - length, 1, 2)), "its own last token"
    positions = layout.positions[: layout.num_tokens].tolist()
    assert positions == [t for length in lengths for t in range(length)]
    assert torch.equal(layout.unpad(apart), packed)


def test_padding_has_no_part_in_gradients():
    layout = pack_lengths(torch.tensor([1, 3]), 3, CPU)
    packed = torch.randn(1, ROUND_TO, 1, 2, requires_grad=True)
    layout.unpad(layout.pad(packed) * torch.tensor(2.0))[:, : layout.num_tokens].sum().backward()
    assert torch.equal(packed.grad[:, :4], torch.full((1, 4, 1, 2), 2.0))
    assert torch.equal(packed.grad[:, 4:], torch.zeros(1, ROUND_TO - 4, 1, 2))


def test_queries_keys_and_values_are_padded_alike():
    layout = pack_lengths(torch.tensor([1, 3]), 3, CPU)
    q, k, v = (torch.randn(1, ROUND_TO, 2, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
    queries, key_values, mask = layout.attention_inputs(torch.stack([q, k], dim=2), v)
    for padded, packed in zip((queries, *key_values), (q, k, v), strict=True):
        assert torch.equal(padded, layout.pad(packed))
    assert mask == "causal"
