"""The bilinear cost model: fitted to a few measured widths of a network, judged on widths it has not seen.

For each network, random widths are narrowed for real and measured with the best counter that this machine has (`secateur.energy.meters`; the
result says which). The model is fitted to the first 4, 6, 8, 12, ... of them and judged on 16 others. Widths of the VGG-like
network are drawn in multiples of 8, as budgets of latency use them. The measurements are kept as tables (`results/bilinear_*.csv`).

    python -m benchmarks.bilinear
"""

from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks import nets
from benchmarks.record import options, record
from secateur.costs.macs import Macs
from secateur.energy.bilinear import fit_bilinear, measure_widths, sample_widths
from secateur.energy.meters import find_meter
from secateur.energy.tables import CostTable

HELD_OUT = 16
FITTED = (4, 6, 8, 12, 16, 24)


def make_vgg() -> nn.Module:
    """Six 3x3 convolutions with batch norms, 32 to 128 wide, on 32x32."""
    layers: list[nn.Module] = []
    width = 3
    for out, pool in ((32, False), (32, True), (64, False), (64, True), (128, False), (128, True)):
        layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        width = out
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU(), nn.Linear(128, 10))


class Inverted(nn.Module):
    """Expand, depthwise, project; a shortcut where shapes agree (Sandler et al. 2018)."""

    def __init__(self, inside: int, outside: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inside * expand
        self.body = nn.Sequential(
            nn.Conv2d(inside, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, outside, 1, bias=False), nn.BatchNorm2d(outside),
        )  # fmt: skip
        self.short = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut, if there is one."""
        return x + self.body(x) if self.short else self.body(x)


def make_mobilenet() -> nn.Module:
    """MobileNetV2-like, for 32x32: a stem, seven inverted residuals, a head."""
    blocks = (
        (16, 24, 1, 4),
        (24, 24, 1, 4),
        (24, 32, 2, 4),
        (32, 32, 1, 4),
        (32, 64, 2, 4),
        (64, 64, 1, 4),
        (64, 96, 1, 4),
    )
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    head = [nn.Conv2d(96, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*stem, *(Inverted(*block) for block in blocks), *head, nn.Linear(256, 10))


NETWORKS = {
    "LeNet-5": (nets.make_lenet_5, (1, 28, 28), 1),
    "VGG-like": (make_vgg, (3, 32, 32), 8),
    "MobileNetV2-like": (make_mobilenet, (3, 32, 32), 1),
}


def rows_of(name: str, args: Any) -> list[dict[str, Any]]:
    """Measure once, fit several times."""
    make, shape, round_to = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    x = torch.randn(args.batch, *shape)
    coupling, meter = sc.couple(model, x), find_meter()
    path = args.out / f"bilinear_{name.lower().replace('-', '_')}.csv"
    if path.exists() and not args.again:
        table = CostTable.read(path)
    else:
        widths = sample_widths(coupling, HELD_OUT + max(FITTED), least=0.1, seed=1, round_to=round_to)
        table = measure_widths(model, coupling, widths, example_inputs=x, meter=meter, seconds=args.seconds)
        table.write(path)
    total, rows = len(table.costs), []
    held = table.part(range(total - HELD_OUT, total))
    for count in FITTED:
        fitted = fit_bilinear(
            table.part(range(count)), model, coupling, example_inputs=x, terms=Macs(), ridge=args.ridge
        )
        rows.append(
            {
                "network": name,
                "widths_in_multiples_of": round_to,
                "terms": len(fitted.names),
                "fitted_to": count,
                "error_held_out": fitted.error(held),
                "error_fitted": fitted.error(table.part(range(count))),
                "least": min(table.costs),
                "most": max(table.costs),
                "unit": table.unit,
                "measured": table.measured,
            }
        )
        print({k: v for k, v in rows[-1].items() if k != "measured"}, flush=True)
    return rows


def main() -> None:
    """Write ``results/bilinear.json``."""
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--ridge", type=float, default=3e-2)
    parser.add_argument("--again", action="store_true", help="measure again, though there is a table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for name in NETWORKS for row in rows_of(name, args)]
    if not args.quick:
        record("bilinear", rows, out=args.out, batch=args.batch, ridge=args.ridge, held_out=HELD_OUT)


if __name__ == "__main__":
    main()
