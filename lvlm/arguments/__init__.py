"""What a caller gives, checked at the call: types in the words of their annotations."""

from lvlm.arguments.check import checks_arguments, fitted, is_whole, listed, token_ids, told, unwrapped

__all__ = ["checks_arguments", "fitted", "is_whole", "listed", "token_ids", "told", "unwrapped"]
