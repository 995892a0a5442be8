"""Multi-head attention of a sequence to itself, and to a context.

Shapes: B batch, T tokens, S tokens attended to, D width, C context width, H heads, Dh = D / H, R rows of a decoder.

The projections have no biases unless `bias` asks for them, so that the models of a comparison differ only in the parts
that they are named after.
"""

from jaxtyping import Float
from torch import Tensor, nn

from grr_coca.model.layers.layout import PLAIN, AttentionInputs, Layout
from grr_coca.model.layers.position import Rotary
from grr_coca.model.layers.scaled_attention import KeyValues, scaled_attention


class SelfAttention(nn.Module):
    """Attention of a sequence to itself. The layout of the tokens says which tokens attend to each other.

    `qk_norm` normalizes the queries and keys of each head (arXiv 2302.05442); None leaves them as they are. `rotary`
    then rotates them by their positions; None means that positions were added to the embeddings.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        rotary: Rotary | None,
        qk_norm: nn.Module | None = None,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.qk_norm = qk_norm or nn.Identity()
        self.mix = Mix()
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(self, x: Float[Tensor, "R T D"], layout: Layout) -> Float[Tensor, "R T D"]:
        """Let the tokens of each sequence attend to each other."""
        qk, v = self.qkv_proj(x).split([2 * x.shape[-1], x.shape[-1]], dim=-1)  # R T 2D, R T D
        qk = self.qk_norm(qk.unflatten(-1, (2, self.num_heads, -1)))
        v = v.unflatten(-1, (self.num_heads, -1))
        if self.rotary is not None:
            qk = self.rotary(qk, layout.positions)
        return self.attend(qk, v, layout)

    def attend(
        self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"], layout: Layout
    ) -> Float[Tensor, "R T D"]:
        """Attention from given queries, keys and values, then the output projection."""
        return self.out_proj(layout.unpad(self.mix(qk, v, layout)))


class Mix(nn.Module):
    """The weightless middle of self-attention. It is a module so that another form of it can be put in its place."""

    def forward(
        self, qk: Float[Tensor, "R T 2 H Dh"], v: Float[Tensor, "R T H Dh"], layout: Layout
    ) -> Float[Tensor, "B S D"]:
        """Attention of the tokens of each sequence to each other, padded as the layout has it for attention."""
        return _mix(layout.attention_inputs(qk, v))


class CrossAttention(nn.Module):
    """Attention of a sequence, or of learned queries, to a context of another width."""

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int, *, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.kv_proj = nn.Linear(context_dim, 2 * embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def project(self, context: Float[Tensor, "B S C"]) -> KeyValues:
        """Keys and values of a context. A caller that uses one context several times can pass them to `forward` instead
        of the context."""
        kv = self.kv_proj(context).unflatten(-1, (2, self.num_heads, -1))  # B S 2 H Dh
        return KeyValues(*kv.unbind(2))

    def projection(self) -> tuple[Float[Tensor, "O C"], Float[Tensor, " O"] | None]:
        """Weight and bias of the linear map from the context to keys and values that `project` computes, O = 2 D."""
        return self.kv_proj.weight, self.kv_proj.bias

    def forward(
        self, x: Float[Tensor, "R T D"], context: Float[Tensor, "B S C"] | KeyValues, layout: Layout = PLAIN
    ) -> Float[Tensor, "R T D"]:
        """Let every token read its whole context. If there are fewer contexts than sequences, each context is shared by
        R / B neighbouring sequences."""
        q = layout.pad(self.q_proj(x).unflatten(-1, (self.num_heads, -1)))  # R T H Dh
        key_values = context if isinstance(context, KeyValues) else self.project(context)  # B S H Dh
        return self.out_proj(layout.unpad(_mix(AttentionInputs(q, key_values, "all"))))


def _mix(inputs: AttentionInputs) -> Float[Tensor, "R T D"]:
    """Attention of queries to keys and values. The outputs of the heads are concatenated."""
    q, key_values, mask = inputs
    # The queries of rows that share keys become one row of queries, so no key is copied. L = R / B * T.
    queries = q.reshape(key_values.keys.shape[0], -1, *q.shape[2:])  # B L H Dh
    q_, k, v = (projected.transpose(1, 2) for projected in (queries, *key_values))  # B H · Dh
    mixed = scaled_attention(q_, k, v, mask)
    return mixed.transpose(1, 2).reshape(*q.shape[:2], -1)
