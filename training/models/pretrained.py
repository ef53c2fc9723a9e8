"""timm's released weights: from the hub, or from this machine's cache where there is no network.

The hub's own client asks again and again for most of a minute before it gives up, and compute nodes often have no
network at all. So the hub is asked once, for a few seconds, whether it answers; if not, the weights that an earlier
call fetched are taken, and without those there is an error at once.
"""

from typing import Any

import huggingface_hub
from huggingface_hub import constants
from timm.models import get_pretrained_cfg

from dlth.tickets.errors import InputError, shown

SECONDS = 5.0
"""How long the hub may take to answer."""

_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm's repositories call their weights, in the order in which timm asks for them."""


def source(timm_name: str) -> dict[str, Any]:
    """Further arguments with which `timm.create_model(..., pretrained=True)` finds its weights; mostly none.

    Raises:
        InputError: the hub does not answer, and no earlier call has left the weights on this machine
    """
    repository = getattr(get_pretrained_cfg(timm_name), "hf_hub_id", None)
    if not repository:
        return {}
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever HTTP client the hub's library has; all mean that it cannot be reached
        cached = (huggingface_hub.try_to_load_from_cache(repository, name) for name in _FILES)
        file = next((path for path in cached if isinstance(path, str)), None)
        if file is None:
            raise InputError(
                f"the released weights of {timm_name} could not be fetched: {shown(constants.ENDPOINT)} does not answer"
                f" ({type(error).__name__}: {shown(error)}), and they are not on this machine. {ADVICE}"
            ) from error
        return {"pretrained_cfg_overlay": {"file": file}}
    return {}


ADVICE = (
    "Without a network, bring the file yourself: --checkpoint FILE (train: --init-from FILE), safetensors or .pth; or"
    " try things out with --random-weights."
)
