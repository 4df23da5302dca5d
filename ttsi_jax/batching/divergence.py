# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""How far an adapter moves the model on a prompt that it was not trained on."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ttsi_jax.model.cache import Cache, wave_axis
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Tokens, forward, logits
from ttsi_jax.model.lora import Adapter
from ttsi_jax.model.sharding import map_rows


@partial(jax.jit, static_argnames=("config", "scale", "n_positions"))
def prompt_kl_wave(
    config: DecoderConfig,
    params: Params,
    prompts: Tokens,
    first: Array,
    lengths: Array,
    past: tuple[Cache, ...],
    adapters: Adapter,
    theta_0: Adapter | None = None,
    *,
    scale: float,
    n_positions: int,
) -> Array:
    """Mean KL(adapted || theta_0) of the next token over a stretch of each prompt, in nats; [E] float32.

    Args:
        prompts: [E, T].
        first, lengths: [E] int32, where in the prompt the stretch begins and how many tokens it has, at most
            `n_positions`; 0 for a row without any.
        past, adapters, theta_0: as in `score_wave`; theta_0 has no leading axis.
    """

    axis = wave_axis(past)
    own, common = (past, ()) if axis == 0 else ((), past)

    def of_rows(
        params: Params, theta_0: Adapter | None, common: tuple[Cache, ...], prompts: Tokens, first: Array,
        lengths: Array, own: tuple[Cache, ...], adapters: Adapter,
    ) -> Array:  # fmt: skip
        def read(prompt: Tokens, past: tuple[Cache, ...], adapter: Adapter) -> tuple[Array, Array]:
            return forward(config, params, prompt, past, adapter, scale)[0], forward(
                config, params, prompt, past, theta_0, scale
            )[0]

        def divergence(row: tuple[Array, Array, Array, Array]) -> Array:
            adapted, base, first, length = row
            index = jnp.arange(n_positions)
            places = jnp.clip(first + index, 0, adapted.shape[0] - 1)
            log_p, log_q = (jax.nn.log_softmax(logits(config, params, hidden[places])) for hidden in (adapted, base))
            kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
            return jnp.sum(jnp.where(index < length, kl, 0.0)) / jnp.maximum(length, 1)

        hidden = jax.vmap(read, (0, axis, 0))(prompts, own or common, adapters)
        return jax.lax.map(divergence, (*hidden, first, lengths))  # one row's logits at a time: they are large

    with jax.named_scope("divergence"):
        return map_rows(of_rows, (params, theta_0, common), (prompts, first, lengths, own, adapters))
