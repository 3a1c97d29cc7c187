"""How much better an answer is than was to be expected."""

from swift_rlhf.advantages.group import group_advantages, informative
from swift_rlhf.advantages.several import combine_rewards, decoupled_advantages
from swift_rlhf.advantages.token_returns import rewards_less_kl, token_returns

__all__ = ["combine_rewards", "decoupled_advantages", "group_advantages", "informative", "rewards_less_kl", "token_returns"]
