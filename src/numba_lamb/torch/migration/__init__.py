"""Moving in: options and state of other optimizers, in the form of this package's.

Other packages are told by names and keys and are never imported. What has no counterpart here is refused before
anything is made; nothing that is passed in is changed or shared.
"""

from numba_lamb.torch.migration.adopt import adopt_state_dict, options_of, state_dict_of
from numba_lamb.torch.migration.optax import optax_state_dict

__all__ = ["adopt_state_dict", "optax_state_dict", "options_of", "state_dict_of"]
