"""TT-SI in PyTorch, transformers and PEFT, one input at a time: the other side of the speed comparison.

It is meant to be as fast as this stack gets without leaving it, so that a ratio to it means something:

- nothing is padded, and the vocabulary projection is computed only where a probability is needed;
- a prompt is computed once. Its candidates follow it in one sequence, under a mask that hides them from each other,
  which spares the cache's copy per candidate of a padded batch; the same cache then serves decoding;
- decoding is a bare greedy loop with merged weights; training is a bare loop over the adapter's weights;
- the base, the model with PEFT's adapter and the merged model share their weights, so nothing is attached, detached
  or subtracted between inputs, and the base stays as it was to the bit.

The caller sets the number of threads (`torch.set_num_threads`).
"""

# torch and peft are an extra: the type checker also runs where they are not installed.
# pyright: reportMissingImports=false
from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoConfig, AutoModelForCausalLM, get_cosine_schedule_with_warmup
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from ttsi_jax.checkpoints.names import HF_LAYER, HF_PROJECTIONS, hf_slots
from ttsi_jax.errors import InputError
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params
from ttsi_jax.model.lora import Adapter, LoraConfig

Ids = Sequence[int]
WARMUP_RATIO, MAX_NORM = 0.03, 1.0
STATIC_STEP = 64  # static caches come in multiples of this many tokens, so that few shapes compile


def build_model(config: DecoderConfig, params: Params, device: str, dtype: torch.dtype) -> Any:
    """The transformers model with the weights of `params` [in, out], frozen; needs no file and no network."""
    if any(config.local_layers):
        raise InputError(f"the PyTorch baseline has no sliding windows; this {config.family} model needs them")
    settings = AutoConfig.for_model(
        config.family,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_length,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        tie_word_embeddings=config.tied_head,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    weights = {}
    for name, slot in hf_slots(config).items():
        value: Any = params
        for key in slot.path:
            value = value[key]
        value = np.array(value, np.float32) - slot.offset
        weights[name] = torch.from_numpy(value.T if slot.transposed else value)
    if config.tied_head:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    if config.rope.divisors:
        model.model.rotary_emb.inv_freq /= torch.tensor(config.rope.divisors, device=device)
    return model.requires_grad_(False).eval()


def _twin(model: nn.Module, own: Sequence[str] = ()) -> Any:
    """A second tree of modules over the same parameters; those named in `own` are copied."""
    return deepcopy(model, {id(weight): weight for name, weight in model.named_parameters() if name not in own})


def _with_adapter(model: nn.Module, lora: LoraConfig) -> Any:
    """PEFT's model around `model`, whose projections it replaces; adapters are float32, as PEFT has them."""
    targets = [HF_PROJECTIONS[name].rpartition(".")[2] for name in lora.targets]
    alpha: Any = lora.alpha  # PEFT's annotation allows whole numbers only
    settings = PeftConfig(
        r=lora.rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():  # PEFT reads a property that transformers 5.23 renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, settings).eval()


def _greedy_step(model: Any, token: Tensor, cache: Cache) -> Tensor:
    """Feeds a token [1, 1], which extends the cache; the next one [1, 1]."""
    hidden = model.model(token, past_key_values=cache, use_cache=True).last_hidden_state
    return model.lm_head(hidden[:, -1]).argmax(-1, keepdim=True)


class PyTorchBaseline:
    """The stages of TT-SI for one input.

    Caches are values: a stage returns a longer one and leaves the one it was given as it was. A cache belongs to the
    weights it was made with, so one from before `merge` is of no use after it.
    """

    def __init__(
        self,
        config: DecoderConfig,
        params: Params,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        compiled: bool = False,
        lora: LoraConfig | None = None,
    ):
        """Converts the weights; holds them once, and the projections a second time for `merge`.

        Args:
            config, params: our model.
            device: `cpu` or `cuda`.
            dtype: of weights and activations; by default float32 on the CPU and bfloat16 elsewhere.
            compiled: `torch.compile` for training and decoding steps, on a GPU with CUDA graphs; every new length
                of a sequence compiles anew, so time it after a first call with the same lengths.
            lora: the adapter's shape and strength.
        """
        lora = lora or LoraConfig()
        self.device = torch.device(device)
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.base = build_model(config, params, device, self.dtype)
        self.trained = _with_adapter(_twin(self.base), lora)
        paths = {
            (layer, name): HF_LAYER.format(layer) + HF_PROJECTIONS[name]
            for layer in range(config.n_layers)
            for name in lora.targets
        }
        self.merged = _twin(self.base, [f"{path}.weight" for path in paths.values()])
        self.answering = self.base  # what prefill, score and decode run: the base or the merged model

        models = self.trained.base_model.model, self.base, self.merged
        self._projections = {key: [model.get_submodule(path) for model in models] for key, path in paths.items()}
        for adapted, *_ in self._projections.values():  # autocast rounds the small factors instead
            adapted.cast_input_dtype_enabled = False
        self._factors = [weight for weight in self.trained.parameters() if weight.requires_grad]
        self._scale = lora.scale

        self._static: StaticCache | None = None
        self._in_place = compiled or self.device.type == "cpu"  # a static cache takes more, smaller GPU kernels
        self._graphs = compiled and self.device.type == "cuda"
        mode = "reduce-overhead" if self._graphs else "default"
        compile_ = (lambda f: torch.compile(f, dynamic=False, mode=mode)) if compiled else (lambda f: f)
        self._step, self._loss_of = compile_(_greedy_step), compile_(self._loss)

    def _ids(self, ids: Ids) -> Tensor:
        return torch.tensor([ids], dtype=torch.long, device=self.device)

    @torch.inference_mode()
    def prefill(self, ids: Ids, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Runs `ids` after `cache`; the next token's logits [V], and the cache of all of it.

        One forward pass over `ids`, with the vocabulary projection of its last token. Extending a cache copies it.
        """
        cache = _fork(cache)
        hidden = self.answering.model(self._ids(ids), past_key_values=cache, use_cache=True).last_hidden_state
        return self.answering.lm_head(hidden[0, -1]), cache

    @torch.inference_mode()
    def score(
        self,
        prompt_ids: Ids,
        candidates: Sequence[Ids],
        prefix_cache: Cache | None = None,
        *,
        start: int | None = None,
    ) -> tuple[list[float], Tensor, Cache]:
        """log P(candidate | prefix, prompt) of each candidate in nats, and what `decode` goes on from.

        That is the next token's logits [V] and the cache after the first `start` tokens of the prompt, by default all
        (an answer starts a few tokens before the candidates, which stand after its opening).

        The first start - 1 tokens are one causal pass; the rest and all candidates (without their last tokens, which
        predict nothing) are a second one. After `prefix_cache` (from `prefill`: the tool list, kept per distinct
        prefix) both are one pass. The vocabulary is projected from the token before `start` on.
        """
        cache, ids, start = _fork(prefix_cache), list(prompt_ids), start or len(prompt_ids)
        if prefix_cache is None and start > 1:
            self.answering.model(self._ids(ids[: start - 1]), past_key_values=cache, use_cache=True)
            ids, start = ids[start - 1 :], 1
        n_past, n_own = cache.get_seq_length(), len(ids)
        owner, position = [0] * n_own, list(range(n_past, n_past + n_own))
        rows, labels = [], []  # each candidate's token, and where it is predicted
        for index, candidate in enumerate(candidates, 1):
            rows += [n_own - 1, *range(len(owner), len(owner) + len(candidate) - 1)]
            labels += candidate
            owner += [index] * (len(candidate) - 1)
            position += range(n_past + n_own, n_past + n_own + len(candidate) - 1)
        fed = [token for candidate in candidates for token in candidate[:-1]]

        owners, positions = self._ids(owner), self._ids(position)
        visible = ((owners == 0) | (owners == owners.T)) & (positions <= positions.T)
        visible = torch.cat([visible.new_ones(len(owner), n_past), visible], dim=1)  # [T, S]
        hidden = self.answering.model(
            self._ids(ids + fed),
            attention_mask=visible[None, None],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0, start - 1 :]
        cache.crop(start - len(owner))

        scores = self.answering.lm_head(hidden)  # [T - start + 1, V]
        log_p = log_softmax(scores.float(), dim=-1)[self._ids(rows)[0] - (start - 1), self._ids(labels)[0]].tolist()
        ends = np.cumsum([len(candidate) for candidate in candidates])
        sums = [math.fsum(log_p[end - len(own) : end]) for own, end in zip(candidates, ends, strict=True)]
        return sums, scores[0].clone(), cache

    @torch.inference_mode()
    def decode(self, next_logits: Tensor, cache: Cache, n_tokens: int) -> list[int]:
        """The `n_tokens` greedy tokens after `cache`, whatever they are; n_tokens - 1 forward passes of one token.

        Nothing waits for the device until the end. On the CPU and when compiled, keys and values are written in place
        into a static cache (after one copy of `cache`); else transformers' dynamic cache grows by concatenation.
        """
        cache = self._static_copy(cache, n_tokens) if self._in_place else _fork(cache)
        tokens = [next_logits.argmax(-1).view(1, 1)]
        for _ in range(n_tokens - 1):
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
            tokens.append(self._step(self.answering, tokens[-1], cache).clone())
        return torch.cat(tokens).flatten().tolist()

    def _static_copy(self, cache: Any, n_more: int) -> StaticCache:
        """A static cache of the contents of `cache` with room for more; reused, as compiled steps know its address."""
        size = -(-(cache.get_seq_length() + n_more) // STATIC_STEP) * STATIC_STEP
        if self._static is None or self._static.get_max_length() != size:
            self._static = StaticCache(config=self.base.config, max_cache_len=size)
        self._static.reset()
        for index, layer in enumerate(cache.layers):
            self._static.update(layer.keys, layer.values, index)
        return self._static

    @torch.no_grad()
    def reset_adapter(self, initial: Adapter | None = None) -> None:
        """New values in place: `initial` (one input's, factors [in, r] and [r, out]), else drawn as PEFT does."""
        for (layer, name), (adapted, *_) in self._projections.items():
            if initial is None:
                adapted.reset_lora_parameters("default", True)
            else:
                for factor, linear in zip(initial[layer][name], (adapted.lora_A, adapted.lora_B), strict=True):
                    linear["default"].weight.copy_(torch.from_numpy(np.array(factor, np.float32).T))

    def _loss(self, ids: Tensor, n_answer: int) -> Tensor:
        """Mean cross-entropy of the last tokens of ids [1, T]; the vocabulary is projected for these alone."""
        inner = self.trained.base_model.model
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            hidden = inner.model(ids, use_cache=False).last_hidden_state[0, -n_answer - 1 : -1]
            return cross_entropy(inner.lm_head(hidden).float(), ids[0, -n_answer:])

    def train(
        self, sequence_ids: Ids, n_answer: int, steps: int, lr: float, initial: Adapter | None = None
    ) -> list[float]:
        """Trains a fresh adapter on the last `n_answer` tokens of one sequence; the loss before each step.

        A step is one forward and backward pass over the sequence (only the adapter gets gradients of weights) and one
        of AdamW's fused kernel. Nothing waits for the device until the end.
        """
        self.reset_adapter(initial)
        ids = self._ids(sequence_ids)
        optimizer = torch.optim.AdamW(self._factors, lr=lr, weight_decay=0.0, fused=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP_RATIO * steps), steps)
        losses = []
        for _ in range(steps):
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
            loss = self._loss_of(ids, n_answer)
            loss.backward()
            nn.utils.clip_grad_norm_(self._factors, MAX_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach().clone())
        return torch.stack(losses).tolist()

    def train_with_trainer(
        self, sequence_ids: Ids, n_answer: int, steps: int, lr: float, initial: Adapter | None = None
    ) -> list[float]:
        """The same training as users write it, with transformers' Trainer (needs the package accelerate).

        Logits of the whole sequence and a Trainer per input are its extra cost; evaluation, saving and reports are off.
        """
        from transformers import PrinterCallback, Trainer, TrainingArguments

        self.reset_adapter(initial)
        ids = list(sequence_ids)
        example = {"input_ids": ids, "labels": [-100] * (len(ids) - n_answer) + ids[-n_answer:]}
        with tempfile.TemporaryDirectory() as directory:
            arguments = TrainingArguments(
                output_dir=directory,
                max_steps=steps,
                per_device_train_batch_size=1,
                learning_rate=lr,
                weight_decay=0.0,
                max_grad_norm=MAX_NORM,
                lr_scheduler_type="cosine",
                warmup_steps=math.ceil(WARMUP_RATIO * steps),
                use_cpu=self.device.type == "cpu",
                bf16=self.dtype == torch.bfloat16,
                dataloader_pin_memory=False,
                label_names=["labels"],
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = Trainer(self.trained, arguments, train_dataset=[example])  # type: ignore[arg-type]
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        trainer.accelerator.unwrap_model(self.trained, keep_fp32_wrapper=False)  # else autocasts nest, input by input
        del self.trained._is_accelerate_prepared  # else the next input's Trainer would train without autocast
        self.trained.eval().zero_grad()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    @torch.no_grad()
    def merge(self) -> None:
        """Answers with the adapter from now on: W + scale * B A is written beside the base's weights, in one pass."""
        for adapted, base, merged in self._projections.values():
            a, b = (linear["default"].weight.to(self.dtype) for linear in (adapted.lora_A, adapted.lora_B))
            torch.addmm(base.weight, b, a, alpha=self._scale, out=merged.weight)
        self.answering = self.merged

    def unmerge(self) -> None:
        """Answers with the base again, which never changed; costs nothing."""
        self.answering = self.base


def _fork(cache: Cache | None) -> Cache:
    """A dynamic cache that grows on its own; the tensors are shared, since growing makes new ones."""
    if cache is None:
        return DynamicCache()
    forked = copy(cache)
    forked.layers = [copy(layer) for layer in cache.layers]
    return forked
