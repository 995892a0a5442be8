import pytest
import torch
from torch import nn

from grr_coca.model.attention import CrossAttention
from grr_coca.model.blocks import AttentionalPooler, RMSNorm, cascade, parallel


def _pooler(num_queries: int) -> AttentionalPooler:
    pooler = AttentionalPooler(num_queries, 32, CrossAttention(32, 20, 4), nn.Identity())
    nn.init.normal_(pooler.queries, generator=torch.Generator().manual_seed(2))
    return pooler.double()


@pytest.mark.parametrize("num_queries", [1, 6])
def test_pooler_equals_torchs_attention_with_learned_queries(num_queries):
    pooler = _pooler(num_queries)
    reference = nn.MultiheadAttention(32, 4, bias=False, kdim=20, vdim=20, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.q_proj_weight.copy_(pooler.attn.q_proj.weight)
        reference.k_proj_weight.copy_(pooler.attn.kv_proj.weight[:32])
        reference.v_proj_weight.copy_(pooler.attn.kv_proj.weight[32:])
        reference.out_proj.weight.copy_(pooler.attn.out_proj.weight)
    context = torch.randn(3, 9, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    queries = pooler.queries.repeat(3, 1, 1)
    expected, _ = reference(queries, context, context, need_weights=False)
    torch.testing.assert_close(pooler(context), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_queries", [1, 2, 256])
def test_as_many_tokens_as_queries_and_one_rank_for_all(num_queries):
    assert _pooler(num_queries)(torch.zeros(3, 9, 20, dtype=torch.float64)).shape == (3, num_queries, 32)


def test_pooled_tokens_are_normalized():
    pooler = AttentionalPooler(4, 32, CrossAttention(32, 20, 4), RMSNorm(32))
    nn.init.normal_(pooler.queries)
    pooled = pooler(torch.randn(3, 9, 20, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(pooled.square().mean(-1), torch.ones(3, 4), rtol=1e-3, atol=1e-3)


def test_the_poolers_read_what_their_arrangement_says():
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    def first(x: torch.Tensor) -> torch.Tensor:
        return x[:, :1]

    patches = torch.arange(6.0).view(1, 3, 2)
    tokens, pooled = cascade(doubled, first, patches)
    assert torch.equal(tokens, 2 * patches)
    assert torch.equal(pooled, 2 * patches[:, :1])
    assert torch.equal(parallel(doubled, first, patches).contrastive, patches[:, :1])
