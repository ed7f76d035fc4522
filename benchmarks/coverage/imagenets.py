"""timm: architectures of different families, at 128 pixels where the architecture takes them, else at their own size."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.coverage.cases import Entry, call

NAMES = [
    "vit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "beit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "convnext_tiny",
    "convnextv2_nano",
    "resnetv2_50",
    "resnet26t",
    "seresnext26d_32x4d",
    "efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "mobilenetv4_conv_small",
    "mobilenetv3_large_100",
    "ghostnetv2_100",
    "hrnet_w18_small",
    "dla34",
    "dpn68",
    "densenet121",
    "regnety_008",
    "nfnet_l0",
    "mixer_s32_224",
    "resmlp_12_224",
    "gmlp_s16_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "twins_svt_small",
    "cait_xxs24_224",
    "crossvit_9_240",
    "levit_128s",
    "mobilevit_xs",
    "mobilevitv2_050",
    "edgenext_x_small",
    "efficientformer_l1",
    "coatnet_nano_rw_224",
    "maxvit_nano_rw_256",
    "xcit_nano_12_p16_224",
    "volo_d1_224",
    "visformer_tiny",
    "tnt_s_patch16_224",
    "res2net50_26w_4s",
    "skresnet18",
    "resnest14d",
    "cspresnet50",
    "vovnet39a",
    "repvgg_a0",
    "selecsls42b",
    "inception_v4",
    "xception41",
    "rexnet_100",
    "eca_nfnet_l0",
    "gcresnet33ts",
    "lambda_resnet26t",
    "bat_resnext26ts",
    "halonet26t",
    "botnet26t_256",
    "fastvit_t8",
    "repvit_m0_9",
    "inception_next_tiny",
    "focalnet_tiny_srf",
    "davit_tiny",
    "mvitv2_tiny",
    "hiera_tiny_224",
    "eva02_tiny_patch14_224",
    "starnet_s1",
    "tiny_vit_5m_224",
    "gcvit_xxtiny",
    "nextvit_small",
    "convmixer_768_32",
    "ese_vovnet19b_dw",
    "vit_base_patch16_siglip_224",
    "vit_small_patch16_dinov3",
    "efficientvit_b0",
    "efficientvit_m0",
    "convit_tiny",
    "coat_lite_tiny",
    "nest_tiny",
    "sequencer2d_s",
    "pit_ti_224",
    "mambaout_femto",
    "hgnetv2_b0",
    "rdnet_tiny",
    "pnasnet5large",
    "nasnetalarge",
    "hardcorenas_a",
    "fbnetc_100",
    "lcnet_050",
    "tinynet_e",
    "mobilenetv5_base",
    "test_vit",
    "swiftformer_xs",
    "shvit_s1",
]


def entries() -> Iterator[Entry]:
    import timm

    known = set(timm.list_models())
    for name in NAMES:
        if name in known:
            yield Entry("timm", name, lambda name=name: timm.create_model(name), _Drawn(name))  # type: ignore[misc]


class _Drawn:
    """Inputs of the first size that the model runs on, found once."""

    def __init__(self, name: str) -> None:
        self.name, self.shape = name, ()

    def __call__(self) -> torch.Tensor:
        if not self.shape:
            self.shape = self._find()
        return torch.randn(2, *self.shape)

    def _find(self) -> Any:
        import timm

        generator = torch.get_rng_state()
        model: nn.Module = timm.create_model(self.name)
        channels, *own = model.pretrained_cfg["input_size"]  # type: ignore[union-attr, misc, index]
        for size in ((128, 128), tuple(own)):
            try:
                with torch.no_grad():
                    call(model.train(), torch.randn(2, channels, *size))
                    call(model.eval(), torch.randn(2, channels, *size))
            except Exception:  # noqa: BLE001 - any refusal of a size means the next one
                continue
            break
        torch.set_rng_state(generator)
        return (channels, *size)
