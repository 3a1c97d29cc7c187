"""Losses of preference and reinforcement learning: pure functions on tensors."""

from swift_rlhf.losses.aggregation import Aggregation, aggregate, sample_weights
from swift_rlhf.losses.chord import chord_mu, chord_phi
from swift_rlhf.losses.chunks import chunked_sum
from swift_rlhf.losses.distillation import generalized_jsd, generalized_jsd_topk
from swift_rlhf.losses.divergence import divergence_scores
from swift_rlhf.losses.kl import kl_estimate
from swift_rlhf.losses.kto import kto_kl, kto_loss
from swift_rlhf.losses.policy import PolicyLoss, policy_loss
from swift_rlhf.losses.policy_options import OBJECTIVES, PolicyOptions
from swift_rlhf.losses.ppo import adapted_kl_coef, gae, ppo_policy_loss, ppo_value_loss, token_rewards
from swift_rlhf.losses.preference import dpo_loss, preference_metrics
from swift_rlhf.losses.reference_free import cpo_loss, log_odds_ratio, orpo_loss, simpo_loss
from swift_rlhf.losses.reward_model import reward_model_loss
from swift_rlhf.losses.rollout_correction import named_diagnostics, rollout_diagnostics, rollout_weights
from swift_rlhf.losses.token_masks import entropy_mask, entropy_threshold, off_policy_sequence_mask, without_truncated
from swift_rlhf.losses.tokens import Sum, desensitized_logps, padded, sequence_logps, wpo_weights
from swift_rlhf.losses.whitening import moments, whiten

__all__ = [
    "OBJECTIVES",
    "Aggregation",
    "PolicyLoss",
    "PolicyOptions",
    "Sum",
    "adapted_kl_coef",
    "aggregate",
    "chord_mu",
    "chord_phi",
    "chunked_sum",
    "cpo_loss",
    "desensitized_logps",
    "divergence_scores",
    "dpo_loss",
    "entropy_mask",
    "entropy_threshold",
    "gae",
    "generalized_jsd",
    "generalized_jsd_topk",
    "kl_estimate",
    "kto_kl",
    "kto_loss",
    "log_odds_ratio",
    "moments",
    "named_diagnostics",
    "off_policy_sequence_mask",
    "orpo_loss",
    "padded",
    "policy_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_metrics",
    "reward_model_loss",
    "rollout_diagnostics",
    "rollout_weights",
    "sample_weights",
    "sequence_logps",
    "simpo_loss",
    "token_rewards",
    "whiten",
    "without_truncated",
    "wpo_weights",
]
