"""Visible tokens of a report and the radiograph's feature to the masked tokens: a small BERT."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder, BertLMPredictionHead

from mrm_stream.config.pretrain import ReportDecoderConfig
from mrm_stream.model.image_encoder import initialise_linears
from mrm_stream.text.tokenizer import MASK, PAD


class ReportDecoder(nn.Module):
    """BERT that also sees the radiograph: its feature is added to the embedding at every position.

    What the visible words do not tell must come from that feature, and so from the image encoder, which is what is kept
    of the model.

    The output embedding is not tied to the input embedding. The pooler is unused; its weights are kept, untrained,
    because checkpoints in the reference's naming hold them.

    Args:
        config: Sizes and dropout.
        image_width: Width of the image feature.
        vocabulary: Entries of the tokenizer.
    """

    pooler_weight: Tensor
    pooler_bias: Tensor

    def __init__(self, config: ReportDecoderConfig, *, image_width: int, vocabulary: int) -> None:
        super().__init__()
        bert = BertConfig(  # type: ignore[call-arg]  # `attn_implementation` is the base class's.
            vocab_size=vocabulary,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.feed_forward,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.positions,
            pad_token_id=PAD,
            attn_implementation="sdpa",
        )
        self.image_embed = nn.Linear(image_width, config.width)
        self.embeddings = BertEmbeddings(bert)  # type: ignore[no-untyped-call]
        self.encoder = BertEncoder(bert)  # type: ignore[no-untyped-call]
        self.head = BertLMPredictionHead(bert)  # type: ignore[no-untyped-call]
        # `head.decoder` has a bias of its own; this one is unused, and would be a parameter without gradient.
        del self.head.bias
        initialise_linears(self)
        for embedding in (m for m in self.embeddings.modules() if isinstance(m, nn.Embedding)):
            nn.init.normal_(embedding.weight, std=0.02)
        with torch.no_grad():
            self.embeddings.word_embeddings.weight[PAD].zero_()
        pooler = nn.init.xavier_uniform_(torch.empty(config.width, config.width))
        self.register_buffer("pooler_weight", pooler)
        self.register_buffer("pooler_bias", torch.zeros(config.width))

    def forward(self, feature_BD: Tensor, token_ids_BL: Tensor, is_masked_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden states from which the head predicts each position's token.

        Args:
            feature_BD: Of the radiograph, (B, D).
            token_ids_BL: The whole report, (B, L); masked tokens are replaced by [MASK] here.
            is_masked_BL: True where a token is masked, (B, L).

        Returns:
            (hidden states (B, L, width) for the head, embedded tokens (B, L, width) without the radiograph).
        """
        embedded_BLD: Tensor = self.embeddings(token_ids_BL.masked_fill(is_masked_BL, MASK))
        # No position attends to [PAD], so that a report's prediction does not depend on how far it is padded. [PAD]
        # itself attends to the report and gets a prediction, because the reference's loss is over all positions.
        is_key_B11L = (token_ids_BL != PAD)[:, None, None]
        states_BLD = embedded_BLD + self.image_embed(feature_BD)[:, None]
        hidden_BLD: Tensor = self.encoder(states_BLD, attention_mask=is_key_B11L).last_hidden_state
        return hidden_BLD, embedded_BLD


def visible_mean(embedded_BLD: Tensor, token_ids_BL: Tensor, is_masked_BL: Tensor) -> Tensor:
    """Return the mean embedding of each report's visible tokens, [CLS] among them, (B, D): the hybrid feature.

    Only visible tokens count: the image decoder must not learn of a word that the report decoder is asked for. As [CLS]
    is always visible, there is never a division by 0.
    """
    weight_BL1 = ((token_ids_BL != PAD) & ~is_masked_BL)[..., None].to(embedded_BLD.dtype)
    return (embedded_BLD * weight_BL1).sum(dim=1) / weight_BL1.sum(dim=1)


def report_losses(
    head: nn.Module,
    hidden_BLD: Tensor,
    token_ids_BL: Tensor,
    is_masked_BL: Tensor,
    *,
    over: Literal["all", "masked"],
    masked_tokens: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy to train on, and, without gradient, that of the masked tokens.

    Args:
        head: Hidden states to logits over the vocabulary.
        hidden_BLD: Hidden states from `ReportDecoder`, (B, L, D).
        token_ids_BL: What should be predicted, (B, L).
        is_masked_BL: True where the token was masked, (B, L).
        over: Mean over "all" positions, visible ones and [PAD] too, or over the "masked" ones only (0 where none is).
        masked_tokens: What the sums over masked tokens are divided by, a scalar above 0.

    Returns:
        Two float32 scalars.
    """
    logits_MV: Tensor
    if over == "masked":
        # Only masked positions reach the head, whose product with the vocabulary is the decoder's largest.
        logits_MV = head(hidden_BLD[is_masked_BL])
        total = functional.cross_entropy(logits_MV.float(), token_ids_BL[is_masked_BL], reduction="sum")
        loss = total / masked_tokens
        return loss, loss.detach()
    # Flat: with the vocabulary as the second of three dimensions the softmax strides, 3x slower (one CPU core).
    logits_MV = head(hidden_BLD).flatten(0, 1)
    entropy_M = functional.cross_entropy(logits_MV.float(), token_ids_BL.flatten(), reduction="none")
    is_masked_M = is_masked_BL.flatten()
    masked_total = entropy_M.detach().masked_fill(~is_masked_M, 0).sum()
    return entropy_M.mean(), masked_total / masked_tokens
