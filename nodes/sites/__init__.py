"""Where computation is skipped, one site a file. A rule names its places in order of preference; `site_of` gives the
first that a model allows. Sites stand around a call and speak to one `Track` each. They know the host's calling
conventions (block hooks, `patches_replace`), but import nothing of it.
"""

from __future__ import annotations

from .blocks import Blocks
from .branch import Branch
from .common import Around, Forward, ModelCall, Options, Site, Unfit, fail_open, warn
from .guided import Guided
from .model import WholeModel
from .modules import AttentionModules, MlpModules
from .trunk import Trunk

_SITES: tuple[type[Site], ...] = (WholeModel, Trunk, Blocks, AttentionModules, MlpModules)
CALL_SITES: dict[str, type[Site]] = {site.name: site for site in _SITES}
"""Sites around one model call, by the kind of place. `Guided` stands around a whole evaluation, `Branch` around both
sides of guidance."""

__all__ = ["CALL_SITES", "Around", "Blocks", "Branch", "Forward", "Guided", "ModelCall", "Options", "Site", "Trunk",
           "Unfit", "WholeModel",
           "fail_open", "warn"]  # fmt: skip
