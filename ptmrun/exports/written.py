"""What an export has written, read back."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Written(NamedTuple):
    """what: for the user; ours: what the run's model gives for the inputs; theirs: what the export gives; call: inputs of an
    encoder -> what the export gives for them, [B, ...], where it gives a tensor."""

    what: str
    ours: Tensor
    theirs: Tensor
    call: Callable[[Any], Tensor] | None = None


def real(outputs: Tensor, inputs: Any) -> Tensor:
    """Those of a model for each token, without padding: [B, T, n] -> [tokens, n]; others as they are."""
    of_tokens = outputs.ndim == 3 and not isinstance(inputs, Tensor)
    return outputs[inputs.mask.to(outputs.device)] if of_tokens else outputs
