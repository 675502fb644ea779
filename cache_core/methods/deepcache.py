"""DeepCache (arXiv 2312.00858): of a U-Net, only the outermost blocks run on most steps; what is deep is used again.

On a computed step the feature that enters the last up layers is stored; between, the input blocks 0 .. b and the output
blocks joined to them run on it (sec. 3.3). Computed is one step in `interval`, or as many on the quadratic schedule
(sec. 3.3, released code): int(Re x^p) + c, x evenly from (-c)^(1/p) to (T - c)^(1/p), dense around the step c.

Differs from the original: the last step is computed; the centre is a share of the run (the authors' 15 of 50 steps);
a branch counts ComfyUI's blocks from the outside. It stands down where other nodes patch blocks, and computes with a
ControlNet.
"""

from __future__ import annotations

from ..gates import Between, Every, Never, all_of
from ..parameters import Parameter, published
from ..predictors import Hold
from ..schedules import Quadratic
from ..types import UNET, Gate, Method, Place, Rule, Signal

PARAMETERS = (
    Parameter("interval", 3, "Compute the whole U-Net in one step of this many. Higher: faster, further from the "
              "original picture. The authors use 3 to 5, and 10 for drafts; 1 switches the node off.", low=1, high=100),
    Parameter("branch", 0, "So many more blocks of either side run on every step. Higher: slower, closer. The authors' "
              "default is 0: the outermost ones only; 3 is their next level.", high=20),
    Parameter("schedule", "uniform", "uniform: every so many steps. quadratic: as many, but dense around one place of "
              "the run, which helps at intervals of 5 and more.", choices=("uniform", "quadratic")),
    Parameter("centre", 0.3, "Only for quadratic: the share of the run around which steps are dense. Lower: more early "
              "ones. The authors: 15 of 50 steps.", high=1, folded=True),
    Parameter("power", 1.4, "Only for quadratic: how dense. Higher: denser there and rarer elsewhere. The authors use "
              "1.2 to 1.4.", low=1.01, high=5, folded=True),
    Parameter("warmup_steps", 1, "So many first steps are always computed. Higher: slower, composition closer to the "
              "original. The authors use 1.", low=1, high=100, folded=True),
)  # fmt: skip


@published(
    "DeepCache", PARAMETERS, aliases=("deep cache",),
    never={"interval": 1}, refusing={"warmup_steps": 100}, skipping={"interval": 3},
    advice="On SD1.5 and SDXL without ControlNet or block patches; short intervals keep detail alive.",
)  # fmt: skip
def deepcache(interval: int, branch: int, schedule: str, centre: float, power: float, warmup_steps: int) -> Method:
    """N, b, and which steps."""
    gate: Gate = Never()
    if interval > 1:
        steps: Gate = Every(interval) if schedule == "uniform" else Quadratic(interval, centre, power)
        gate = all_of(Between(warmup_steps, 1), steps)
    place = Place(UNET.kind, head=branch + 1, tail=branch + 1)
    return Method("DeepCache", (Rule((place,), Signal(), gate, Hold(), "absolute"),))
