"""Hugging Face architectures from small configs: nothing is downloaded, and the shapes are all that matters."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers as hf
from torch import nn

from benchmarks.coverage.cases import Entry

hf.logging.set_verbosity_error()

Sizes = dict[str, Any]
WIDE: Sizes = {
    "vocab_size": 99,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
GROUPED = WIDE | {"num_key_value_heads": 2}
PATCHES: Sizes = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
GPT: Sizes = {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
PAIR: Sizes = {
    "vocab_size": 99,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
SPECIAL: Sizes = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
RESNET: Sizes = {"embedding_size": 16, "hidden_sizes": [32, 64, 64, 128], "depths": [1, 1, 1, 1]}

# class, config, sizes; text models read tokens
TEXT: dict[str, tuple[str, str, Sizes]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", WIDE),
    "roberta": ("RobertaModel", "RobertaConfig", WIDE),
    "xlm_roberta": ("XLMRobertaForTokenClassification", "XLMRobertaConfig", WIDE),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"vocab_size": 99, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "max_position_embeddings": 64},
    ),
    "albert": ("AlbertModel", "AlbertConfig", WIDE | {"embedding_size": 32}),
    "electra": ("ElectraModel", "ElectraConfig", WIDE | {"embedding_size": 32}),
    "deberta_v2": (
        "DebertaV2Model",
        "DebertaV2Config",
        WIDE | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "mpnet": ("MPNetModel", "MPNetConfig", WIDE),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", WIDE | SPECIAL),
    "roformer": ("RoFormerModel", "RoFormerConfig", WIDE),
    "squeezebert": ("SqueezeBertModel", "SqueezeBertConfig", WIDE | {"embedding_size": 64}),
    "convbert": ("ConvBertModel", "ConvBertConfig", WIDE | {"embedding_size": 64}),
    "fnet": ("FNetModel", "FNetConfig", WIDE),
    "nystromformer": ("NystromformerModel", "NystromformerConfig", WIDE),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "vocab_size": 99,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", WIDE),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", GPT | {"rotary_dim": 8}),
    "gpt_bigcode": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT | {"multi_query": True}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", GPT | {"rotary_dim": 8}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 99,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "ffn_dim": 128,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 64,
        },
    ),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptForCausalLM", "MptConfig", {"vocab_size": 99, "d_model": 64, "n_layers": 2, "n_heads": 4}),
    "falcon": (
        "FalconForCausalLM",
        "FalconConfig",
        {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED),
    "mistral": ("MistralForCausalLM", "MistralConfig", GROUPED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GROUPED | {"head_dim": 16}),
    "phi": ("PhiForCausalLM", "PhiConfig", GROUPED),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GROUPED | {"pad_token_id": 0}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", WIDE | {"num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", GROUPED | {"head_dim": 16}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", GROUPED | {"head_dim": 16}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", GROUPED),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", GROUPED),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GROUPED),
    "cohere": ("CohereForCausalLM", "CohereConfig", GROUPED),
    "granite": ("GraniteForCausalLM", "GraniteConfig", GROUPED),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", GROUPED | SPECIAL),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", GROUPED | {"num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        GROUPED | {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    "mamba2": (
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "vocab_size": 99,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "rwkv": (
        "RwkvForCausalLM",
        "RwkvConfig",
        {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 2, "attention_hidden_size": 64},
    ),
    "xlnet": (
        "XLNetModel",
        "XLNetConfig",
        {"vocab_size": 99, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    ),
}
IMAGE: dict[str, tuple[str, str, Sizes, int]] = {
    "vit": ("ViTForImageClassification", "ViTConfig", PATCHES, 32),
    "deit": ("DeiTModel", "DeiTConfig", PATCHES, 32),
    "beit": ("BeitModel", "BeitConfig", PATCHES, 32),
    "data2vec_vision": ("Data2VecVisionModel", "Data2VecVisionConfig", PATCHES, 32),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", PATCHES, 32),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", PATCHES | {"mask_ratio": 0.0}, 32),
    "yolos": (
        "YolosForObjectDetection",
        "YolosConfig",
        PATCHES | {"image_size": [32, 32], "num_detection_tokens": 10},
        32,
    ),
    "dpt": (
        "DPTForDepthEstimation",
        "DPTConfig",
        PATCHES
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 64, 64],
            "fusion_hidden_size": 32,
        },
        32,
    ),
    "swin": (
        "SwinModel",
        "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        32,
    ),
    "convnext": ("ConvNextModel", "ConvNextConfig", {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}, 64),
    "resnet": ("ResNetModel", "ResNetConfig", RESNET, 64),
    "regnet": ("RegNetForImageClassification", "RegNetConfig", RESNET | {"groups_width": 16}, 64),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.5}, 64),
    "mobilevit": (
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {"hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 16, 24, 32, 48, 64, 80]},
        64,
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        64,
    ),
    "poolformer": (
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]},
        64,
    ),
    "pvt_v2": (
        "PvtV2ForImageClassification",
        "PvtV2Config",
        {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4]},
        64,
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": [16, 32, 40, 64],
            "depths": [1, 1, 1, 1],
            "decoder_hidden_size": 64,
            "num_attention_heads": [1, 2, 5, 8],
        },
        64,
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {"hidden_size": 32, "auxiliary_in_channels": 64, "auxiliary_channels": 32, "pool_scales": [1, 2]},
        64,
    ),
    "detr": (
        "DetrForObjectDetection",
        "DetrConfig",
        {k: v for k, v in PAIR.items() if k != "vocab_size"} | {"num_queries": 10},
        64,
    ),
}


def tokens(length: int = 16) -> torch.Tensor:
    return torch.randint(5, 99, (2, length))


def _text(name: str) -> Entry:
    kind, config, sizes = TEXT[name]
    keywords = getattr(hf, config)().to_dict()
    quiet = {"use_cache": False} if keywords.get("use_cache") else {}
    return _entry(name, kind, lambda: getattr(hf, config)(**sizes), lambda: {"input_ids": tokens(), **quiet})


def _image(name: str) -> Entry:
    kind, config, sizes, side = IMAGE[name]

    def configure() -> Any:
        more: Sizes = {}
        if name in ("detr", "upernet"):
            names = ["stage4"] if name == "detr" else ["stage1", "stage2", "stage3", "stage4"]
            more = {"backbone_config": hf.ResNetConfig(**RESNET, out_features=names)}
        return getattr(hf, config)(**sizes, **more)

    return _entry(name, kind, configure, lambda: {"pixel_values": torch.randn(2, 3, side, side)})


def _entry(name: str, kind: str, configure: Callable[[], Any], inputs: Callable[[], Any]) -> Entry:
    def make() -> nn.Module:
        model: nn.Module = getattr(hf, kind)(configure())
        return model

    return Entry("transformers", name, make, inputs)


def _rest() -> Iterator[Entry]:
    def pair() -> Any:
        return {"input_ids": tokens(), "decoder_input_ids": tokens(8), "use_cache": False}

    t5: Sizes = {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    yield _entry("t5", "T5ForConditionalGeneration", lambda: hf.T5Config(**t5), pair)
    yield _entry("mt5", "MT5Model", lambda: hf.MT5Config(**t5), pair)
    for name, kind in {
        "bart": "BartModel",
        "mbart": "MBartModel",
        "pegasus": "PegasusModel",
        "m2m_100": "M2M100Model",
    }.items():
        config = kind.removesuffix("Model") + "Config"
        yield _entry(name, kind, lambda config=config: getattr(hf, config)(**PAIR, max_position_embeddings=64), pair)  # type: ignore[misc]
    yield _entry(
        "marian",
        "MarianModel",
        lambda: hf.MarianConfig(**PAIR, max_position_embeddings=64, pad_token_id=0, decoder_start_token_id=1),
        pair,
    )
    yield _entry(
        "whisper",
        "WhisperModel",
        lambda: hf.WhisperConfig(
            **PAIR,
            **SPECIAL,
            num_mel_bins=20,
            max_source_positions=50,
            max_target_positions=32,
            decoder_start_token_id=1,
        ),
        lambda: {"input_features": torch.randn(2, 20, 100), "decoder_input_ids": tokens(8), "use_cache": False},
    )
    text = {k: v for k, v in WIDE.items() if k != "max_position_embeddings"} | {"max_position_embeddings": 32}
    yield _entry(
        "clip",
        "CLIPModel",
        lambda: hf.CLIPConfig(text_config=text | SPECIAL, vision_config=PATCHES, projection_dim=32),
        lambda: {"input_ids": tokens(12), "pixel_values": torch.randn(2, 3, 32, 32)},
    )
    yield _entry(
        "siglip",
        "SiglipModel",
        lambda: hf.SiglipConfig(text_config=text | SPECIAL, vision_config=PATCHES),
        lambda: {"input_ids": tokens(12), "pixel_values": torch.randn(2, 3, 32, 32)},
    )
    speech: Sizes = {k: v for k, v in WIDE.items() if k != "max_position_embeddings"} | {
        "vocab_size": 32,
        "conv_dim": (32, 32, 32),
        "conv_stride": (5, 2, 2),
        "conv_kernel": (10, 3, 3),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "apply_spec_augment": False,
    }
    for name, kind in {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "unispeech": "UniSpeechModel"}.items():
        config = kind.removesuffix("Model") + "Config"
        yield _entry(
            name,
            kind,
            lambda config=config: getattr(hf, config)(**speech),  # type: ignore[misc]
            lambda: {"input_values": torch.randn(2, 2000)},
        )
    yield _entry(
        "audio_spectrogram_transformer",
        "ASTModel",
        lambda: hf.ASTConfig(**{k: v for k, v in PATCHES.items() if k != "image_size"}, max_length=64, num_mel_bins=32),
        lambda: {"input_values": torch.randn(2, 64, 32)},
    )
    yield _entry(
        "videomae",
        "VideoMAEForVideoClassification",
        lambda: hf.VideoMAEConfig(**PATCHES, num_frames=4),
        lambda: {"pixel_values": torch.randn(2, 4, 3, 32, 32)},
    )


def entries() -> Iterator[Entry]:
    yield from (_text(name) for name in TEXT)
    yield from (_image(name) for name in IMAGE)
    yield from _rest()
