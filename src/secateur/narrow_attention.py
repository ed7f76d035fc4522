"""`nn.MultiheadAttention` whose heads need not fill the embedding: what narrowing puts in its place."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["NarrowAttention", "narrow_attention_"]


class NarrowAttention(nn.MultiheadAttention):
    """Same parameters, same call, same results; ``num_heads * head_dim`` may be smaller than ``embed_dim``."""

    def forward(  # noqa: PLR0917 - the signature of PyTorch
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results as in `nn.MultiheadAttention`."""
        if (
            query.is_nested
        ):  # `nn.TransformerEncoder` packs padded tokens away; it attends to itself then, without further masks
            return self._unpadded(query), None
        batched, first = query.dim() == 3, self.batch_first or query.dim() != 3
        q, k, v = (t if batched else t.unsqueeze(0) for t in (query, key, value))
        if not first:
            q, k, v = (t.transpose(0, 1) for t in (q, k, v))
        q, k, v = self._project(q, k, v)
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        hinted = is_causal and key_padding_mask is None and not need_weights  # PyTorch then takes the hint for the mask
        mask = None if hinted else self._mask(q, k, key_padding_mask, attn_mask, batched)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            heads = F.dropout(weights, dropout) @ v
        else:
            heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=hinted)
        out = self.out_proj(heads.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        if not batched:
            return out.squeeze(0), weights
        return (out if first else out.transpose(0, 1)), weights

    def _unpadded(self, packed: Tensor) -> Tensor:
        x = packed.to_padded_tensor(0.0)
        lengths = torch.tensor([len(tokens) for tokens in packed.unbind()], device=x.device)
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        attended, _ = self(x, x, x, padding, need_weights=False)
        return torch._nested_tensor_from_mask(attended, ~padding, mask_check=False)

    def _project(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        packed: Any = self.in_proj_weight  # None where queries, keys and values have inputs of their own
        biases: Any = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        matrices = separate if packed is None else packed.chunk(3)
        made = [F.linear(t, w, b) for t, w, b in zip((q, k, v), matrices, biases, strict=True)]
        for extra, place in ((self.bias_k, 1), (self.bias_v, 2)):
            if extra is not None:
                made[place] = torch.cat([made[place], extra.expand(made[place].shape[0], -1, -1)], 1)
        if self.add_zero_attn:
            made[1:] = [F.pad(t, (0, 0, 0, 1)) for t in made[1:]]
        return [t.reshape(*t.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for t in made]

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None, batched: bool) -> Tensor | None:
        given = mask if mask is not None else padding
        extra = k.shape[2] - (given.shape[-1] if given is not None else k.shape[2])  # tokens that bias_k and zeros add
        total = None
        if mask is not None:
            added = _added(mask, q.dtype)
            total = added.view(q.shape[0], self.num_heads, *added.shape[1:]) if added.dim() == 3 else added
        if padding is not None:
            rows = _added(padding if batched else padding.unsqueeze(0), q.dtype)[:, None, None]
            total = rows if total is None else total + rows
        return F.pad(total, (0, extra)) if total is not None and extra else total


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as something to add to scores."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))
    return mask.to(dtype)


def narrow_attention_(layer: nn.MultiheadAttention) -> None:
    """Turn a layer whose projections were cut into a `NarrowAttention`, in place; parameters stay the same objects."""
    rows = layer.out_proj.weight.shape[1]
    layer.num_heads = rows // layer.head_dim
    layer._qkv_same_embed_dim = False  # switches PyTorch's fused inference path off: it assumes full width
    layer.__class__ = NarrowAttention
