"""Two real kinds of tokenizer end to end: byte-level BPE and SentencePiece's, over tiny models."""

import json

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from extra.real import decode as real_decode
from extra.real import train_cdpo, train_sft
from extra.real.loading import Unusable
from extra.real.modeling import FusionRoute
from extra.tokenizers.bytewise import END, ByteModel
from extra.tokenizers.real import ChatTokenizer, ModelReader
from toy_experts.script import UserError

SAMPLES = [
    (f"Nina has {a} apples. She buys {b} more.\nNow?", f"{a} + {b} = {a + b}.\nC'était 1 été")
    for a in range(12)
    for b in range(12)
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def trained(tokenizer, alphabet):
    texts = [text for sample in SAMPLES for text in sample]
    how = {"special_tokens": SPECIAL, "vocab_size": 400, "show_progress": False}
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **how)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_level():
    """Like GPT-2: every byte is a token, a word has the space before it."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    return trained(t, pre_tokenizers.ByteLevel.alphabet())


def sentencepiece():
    """Like Llama 2: a space is ▁, one is put before a text, unknown characters are bytes."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    saved = json.loads(trained(t, []).to_str())["model"]
    vocab, merges = saved["vocab"], [tuple(m) for m in saved["merges"]]
    for b in range(256):
        vocab[f"<0x{b:02X}>"] = len(vocab)
    full = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>"))
    full.normalizer = t.normalizer
    parts = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    full.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1)])
    full.add_special_tokens(SPECIAL)
    return full


def wrapped(tokenizer):
    how = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **how)


def tiny(tokenizer, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer) + 5, **sizes, **heads)  # 5 rows of padding
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def world():
    """A byte-level router's language model, two experts, and their tokenizers."""
    toks = [wrapped(t()) for t in (byte_level, sentencepiece, byte_level)]
    return [tiny(t, seed) for seed, t in enumerate(toks)], [ChatTokenizer(t) for t in toks]


@pytest.mark.parametrize("text", ["a", " a", "A  b\n\n é€", "12 + 3 = 15.", "</s> <s>▁"])
def test_tokens_spell_their_text(world, text):
    for tok in world[1]:
        ids = tok.vocabulary.encode(text.encode())
        spelled = b"".join(tok.words[i] for i in ids)
        assert spelled.decode() == (text if tok.before == "" else text.replace("▁", " "))
        assert tok.answer(text) == [*ids, tok.end]
    assert [tok.before for tok in world[1]] == ["", "\n", ""]  # SentencePiece's space is left out


def test_a_tokenizer_that_changes_texts_is_refused():
    lower, few = byte_level(), Tokenizer(models.WordLevel({"A": 0, "<unk>": 1}, "<unk>"))
    lower.normalizer = normalizers.Lowercase()
    for tokenizer in (lower, few):
        with pytest.raises(Unusable, match="writes 'A  b"):
            ChatTokenizer(wrapped(tokenizer))


def test_a_context_that_is_too_short_is_said(world):
    lm, tok = world[0][0], world[1][0]
    model = ByteModel(ModelReader(lm), tok.vocabulary, tok.prompt("a" * 3000))
    with pytest.raises(UserError, match="reads 2048 tokens at most"):
        model.seek(b"")


def test_a_cache_that_is_rewound_changes_nothing(world):
    for lm, tok in zip(*world):
        prompt = tok.prompt("Nina has 2 apples.")
        used = ByteModel(ModelReader(lm), tok.vocabulary, prompt)
        used.seek(b"2 + 3 = 5.")
        used.seek(b"")
        fresh = ByteModel(ModelReader(lm), tok.vocabulary, prompt)
        a, b = (m.next(m.push(m.seek(b"2 "), ord("+"))) for m in (used, fresh))
        assert torch.allclose(a, b, atol=1e-5)
        ids = torch.tensor([prompt])
        p = lm(input_ids=ids).logits[0, -1, tok.vocabulary.ids].double().softmax(-1)
        end = fresh.next(fresh.seek(b""))[END].exp()  # the end token by itself, without a byte
        assert float(end) == pytest.approx(float(p[-1]), rel=1e-3)


def test_the_commands_of_extra_real_with_fuse(tmp_path, capsys):
    """Both phases and decoding, with an expert of other tokens, as a user would run them."""
    kinds = {"router": byte_level, "math": sentencepiece, "code": byte_level}
    for seed, (name, kind) in enumerate(kinds.items()):
        tokenizer = wrapped(kind())
        tiny(tokenizer, seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    sft = [{"prompt": p, "completion": a} for p, a in SAMPLES[:40]]
    pairs = [{"prompt": p, "chosen": a, "rejected": "I do not know."} for p, a in SAMPLES[:4]]
    for name, found in (("sft", sft), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)))
    experts = [f"math={tmp_path}/math", f"code={tmp_path}/code"]
    where = ["--out", f"{tmp_path}/out", "--device", "cpu", "--batch", "8"]
    where += ["--data", f"{tmp_path}/sft.jsonl", "--lr", "1e-2"]
    init = ["--init", f"{tmp_path}/router", "--experts", *experts]
    with pytest.raises(Unusable, match="--fuse bytes can do without"):
        train_sft.main([*where, *init])
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "completion": "b", "weight": 0}')
    bad = ("--data", f"{tmp_path}/bad.jsonl", "jsonl, line 1: "), ("--max_len", "4", "40 of more")
    for flag, value, says in bad:
        with pytest.raises(UserError, match=says):
            train_sft.main([*where, *init, "--fuse", "bytes", flag, value])
    train_sft.main([*where, *init, "--fuse", "bytes", "--epochs", "12"])
    train_cdpo.main([*where, "--pairs", f"{tmp_path}/pairs.jsonl"])  # fuses as phase 1 did
    log = (tmp_path / "out/seed0/router/log.jsonl").read_text().splitlines()
    kinds = {json.loads(line)["kind"] for line in log}
    assert kinds == {"sft", "pair"}
    router = ["--router", f"{tmp_path}/out/seed0/router", "--max_new", "12"]

    def said(flags):
        capsys.readouterr()
        real_decode.main([SAMPLES[5][0], *router, *flags.split()])
        return capsys.readouterr().out

    assert said("") == said("--fuse bytes")  # unless given, as it was trained
    assert "(bytes: " in said("") and "(spans: " in said("--fuse spans")
    assert "(bytes: code 12)" in said("--method code")
    alone = said("--method router")
    assert " + " in alone and "disagree" not in alone  # what phase 1 taught it
    for flags in ("--fuse spans --temperature 1", "--temperature 1 --top_p 0.5", "--max_new 3000"):
        with pytest.raises(UserError, match="sample|the router reads 2048 tokens"):
            said(flags)
    model = FusionRoute.from_pretrained(f"{tmp_path}/out/seed0/router")
    with pytest.raises(Unusable, match="trained with --fuse bytes"):
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2)
