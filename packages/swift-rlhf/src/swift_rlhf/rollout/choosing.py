"""Which engine writes the answers of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swift_core.protocols import Tuner
from swift_core.templates.chat import ChatTemplate
from swift_core.train.parallel import World
from torch import nn

from swift_rlhf.config.service import ServiceSection, mode_of_rollouts
from swift_rlhf.rollout.asked import stop_tokens
from swift_rlhf.rollout.client import RolloutClient
from swift_rlhf.rollout.engine import RolloutEngine
from swift_rlhf.rollout.servers import RolloutServers
from swift_rlhf.rollout.transformers_sampler import TransformersSampler
from swift_rlhf.rollout.weights import TrainedWeights


def make_engine(settings: Any, model: nn.Module, template: ChatTemplate, tuner: Callable[[], Tuner], world: World) -> RolloutEngine:
    """Return the engine that the settings ask for.

    Args:
        settings: of the run.
        model: that is trained.
        template: of the model.
        tuner: returns what writes the trained part of the model.
        world: the processes of the run.

    Raises:
        EngineError: when a server does not answer, or an engine cannot start.
    """
    mode = mode_of_rollouts(settings)
    if mode == "server":
        service: ServiceSection = settings.service
        clients = [RolloutClient(url, service.rollout_api_key) for url in service.urls]
        weights = TrainedWeights(model, tuner)
        engine = RolloutServers(
            clients,
            weights,
            timeout=service.rollout_timeout,
            running=service.rollout_running,
            leads=world.is_main,
            stops=stop_tokens(template),
        )
        engine.greet()
        return engine
    if mode == "colocate":
        from swift_rlhf.rollout.colocate import start_engine  # needs an engine that is not installed everywhere

        return start_engine(settings, TrainedWeights(model, tuner), template)
    return TransformersSampler(model, template.tokenizer, stop_tokens(template), max_rows=settings.sampling.rollout_batch_size)
