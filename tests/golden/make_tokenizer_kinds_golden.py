#!/usr/bin/env python3
"""Makes tokenizer_kinds.json and the tiny tokenizers of tokenizer_kinds/: every kind that regard reads, and what
`tokenizers` makes of hard texts with it.

    ./make_tokenizer_kinds_golden.py [--gemma3 gemma-3-270m-q4_k_m.gguf] --out .

tokenizer_kinds.json holds

    texts      {name: text}
    cases      {tokenizer: {name: {"ids": without special tokens around, "decoded": where that is not the text}}};
               "front" and "back" of each tokenizer are what add_special_tokens=True puts around them
    pieces     {tokenizer: [[text, score, type]]}: the pieces of those that SentencePiece trained, for GGUF files

The byte-level ones are trained by `tokenizers` on tiny_corpus.txt, the others by SentencePiece. "gemma3" is rebuilt
from the vocabulary and the scores of the GGUF file; without that file its cases stay as they are.
"""

import argparse
import base64
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.tokenization_utils_base import generate_merges

from golden_writer import write
from make_tokenizer_golden import CORPUS, HERE, LLAMA3_PATTERN, MIXED, RULES, random_texts, read, special, train

FOLDER = "tokenizer_kinds"
SEED = 20251128
RANDOM_CASES = 30
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MORE_RULES = [
    ("camel_case", "camelCase HTTPServer getURLs XMLHttpRequest ÉCOLE Éc ǅungla"),
    ("case_of_any_script", "ПРИВЕТ Привет ΑΒΓ αβγ İstanbul ıI ẞß ŒŒ"),
    ("path_then_slash", "a/b //c !/\n/"),
    ("composed_and_decomposed", "é e\u0301 Å A\u030a ố o\u0302\u0301 o\u0301\u0302 각 \u1100\u1161\u11a8"),
    ("marks_out_of_order", "q\u0307\u0323 q\u0323\u0307 a\u0315\u0300\u05ae\u0062"),
    ("compatible_characters", "ﬁ ﬃ Ⅻ ｆｕｌｌ ㎏ ① ½ ª ℌ ﷺ"),
    ("composition_exclusions", "\u0958 \u2126 \u212b \u0344 \ufb1d"),
    ("space_marks_in_text", "▁a ▁▁b c▁ a▁b"),
    ("bytes_written_out", "<0x41><0x0A> <0xE2><0x82><0xAC>"),
    ("leading_spaces", "    x  y   z    "),
    ("spaces_then_special", "a   <s>  b </s>  <unk> c"),
    ("lines_and_tabs", "\n\na\n\n\n\tb\t\tc\n"),
    ("rare_scripts", "ᚠᚢᚦ 𐍈 ⵣ ꙮ 𓀀𓂀 ꯍ"),
    ("masked", "a <mask> b  <mask>c<mask>"),
    ("added_words", "wordword word, Word WORD cafe\u0301 café"),
    ("html", "<b>x</b><table> <s>a</s>"),
    ("turns", "<start_of_turn>user\nHi<end_of_turn>\n<bos><eos>"),
]


def byte_level(pattern: str, **options) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def qwen2() -> Tokenizer:
    tokenizer = byte_level(QWEN2_PATTERN)
    tokenizer.normalizer = normalizers.NFC()
    train(tokenizer, special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def gpt_oss() -> Tokenizer:
    tokenizer = byte_level(O200K_PATTERN)
    train(tokenizer, special("<|startoftext|>", "<|return|>", "<|start|>", "<|end|>"))
    tokenizer.post_processor = template("<|startoftext|><|start|> $A <|end|>", tokenizer)
    return tokenizer


def olmo2() -> Tokenizer:
    tokenizer = byte_level(LLAMA3_PATTERN)
    train(tokenizer, special("<|endoftext|>", "<|pad|>"))
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, special("<s>", "<pad>", "</s>", "<unk>"))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_tokens([AddedToken("word", single_word=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def many_steps() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip(),
        normalizers.Replace(Regex("[!?]{2,}"), "!"), normalizers.Replace("--", "—"),
    ])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation(behavior="merged_with_previous"),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
    ])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train([str(CORPUS)], trainer)
    tokenizer.add_tokens([AddedToken("Word", rstrip=True, normalized=True), AddedToken("Café", normalized=True)])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(), processors.BertProcessing(*[(t, tokenizer.token_to_id(t)) for t in "ab"])])
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("-")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.CharDelimiterSplit("-"), pre_tokenizers.Whitespace()])
    tokenizer.decoder = decoders.Sequence([decoders.Strip("a", 1, 0), decoders.Fuse()])
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train([str(CORPUS)], trainer)
    return tokenizer


def template(single: str, tokenizer: Tokenizer):
    tokens = [t for t in single.replace("><", "> <").split() if not t.startswith("$")]
    return processors.TemplateProcessing(single=single.replace("><", "> <"),
                                         special_tokens=[(t, tokenizer.token_to_id(t)) for t in tokens])


def sentence_piece(**options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(read(CORPUS).split("\n")), model_writer=model, vocab_size=700,
        hard_vocab_limit=False, minloglevel=2, num_threads=1, **options)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto


def pieces_of(proto) -> list:
    return [[p.piece, p.score, p.type] for p in proto.pieces]


def bpe_of_pieces(pieces: list) -> Tokenizer:
    """As transformers makes it of a SentencePiece model: a merge for each way to put a piece together."""
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    scores = {text: score for text, score, kind in pieces if kind in (NORMAL, UNUSED)}
    usable = {text: i for text, i in vocabulary.items() if text in scores}
    merges = generate_merges(usable, scores)
    unknown = next((text for text, _, kind in pieces if kind == UNKNOWN), "<unk>")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True,
                                     byte_fallback=any(kind == BYTE for _, _, kind in pieces)))
    add_added(tokenizer, pieces)
    return tokenizer


def add_added(tokenizer: Tokenizer, pieces: list) -> None:
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, _, kind in pieces if kind in (CONTROL, UNKNOWN)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, _, kind in pieces if kind == USER_DEFINED])


SPACE = "▁"
SPM_DECODERS = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]


def llama2(pieces: list) -> Tokenizer:
    tokenizer = bpe_of_pieces(pieces)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence([*SPM_DECODERS, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = template("<s> $A", tokenizer)
    return tokenizer


def mixtral(pieces: list) -> Tokenizer:
    tokenizer = bpe_of_pieces(pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([*SPM_DECODERS, decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = template("<s> $A </s>", tokenizer)
    return tokenizer


def gemma(pieces: list) -> Tokenizer:
    tokenizer = bpe_of_pieces(pieces)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(SPM_DECODERS)
    tokenizer.post_processor = template("<bos> $A", tokenizer)
    return tokenizer


def t5(proto) -> Tokenizer:
    pieces = pieces_of(proto)
    tokenizer = Tokenizer(models.Unigram([(t, s) for t, s, _ in pieces], unk_id=proto.trainer_spec.unk_id))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
        normalizers.Strip(left=True, right=True), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    add_added(tokenizer, pieces)
    tokenizer.post_processor = template("$A </s>", tokenizer)
    return tokenizer


def unigram_bytes(proto) -> Tokenizer:
    pieces = pieces_of(proto)
    tokenizer = Tokenizer(models.Unigram([(t, s) for t, s, _ in pieces], unk_id=proto.trainer_spec.unk_id,
                                         byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first"),
                                           decoders.Fuse()])
    add_added(tokenizer, pieces)
    return tokenizer


def trained_pieces() -> dict:
    common = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    llama = sentence_piece(model_type="bpe", **common)
    runs = ["\n" * n for n in range(1, 5)] + [" " * n for n in range(2, 5)] + ["\t", "<b>", "</b>", "<table>"]
    gemma_like = pieces_of(sentence_piece(
        model_type="bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>",
        bos_piece="<bos>", control_symbols="<mask>,<start_of_turn>,<end_of_turn>", **common))
    # SentencePiece's trainer takes no white space for symbols.
    gemma_like += [[text, -1000.0, USER_DEFINED] for text in runs]
    # A few rules in the form that SentencePiece compiles: ligatures, full width letters, odd spaces, whole clusters.
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        for source, target in [("ﬁ", "fi"), ("ｆ", "f"), ("ｕ", "u"), ("①", "1"), ("\u00a0", " "), ("\t", " "),
                               ("\n", " "), ("\u200b", ""), ("e\u0301", "é"), ("½", "1/2"), ("\U00010348", "x")]:
            code_points = ["".join(f"{ord(c):X} " for c in text).strip() for text in (source, target)]
            rules.write("\t".join(code_points) + "\n")
        rules.flush()
        t5_like = sentence_piece(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, pad_piece="<pad>",
                                 control_symbols="<mask>", normalization_rule_tsv=rules.name)
    unigram = sentence_piece(model_type="unigram", **common)
    return {"llama2": llama, "gemma": gemma_like, "t5": t5_like, "unigram_bytes": unigram}


def gemma3(path: Path) -> Tokenizer:
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    tokens, scores, kinds = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
    return gemma(list(map(list, zip(tokens, scores, kinds))))


def cases_of(tokenizer: Tokenizer, texts: dict) -> dict:
    ids = tokenizer.encode("", add_special_tokens=True).ids
    middle = tokenizer.encode("a", add_special_tokens=False).ids
    around = tokenizer.encode("a", add_special_tokens=True).ids
    at = next(i for i in range(len(around) + 1) if around[i:i + len(middle)] == middle)
    front, back = around[:at], around[at + len(middle):]
    if ids != front + back:
        raise SystemExit(f"the empty text becomes {ids}, expected {front + back}")
    cases = {}
    for name, text in texts.items():
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        if tokenizer.encode(text, add_special_tokens=True).ids != front + plain + back:
            raise SystemExit(f"{name}: other tokens than {front} and {back} are around")
        decoded = tokenizer.decode(plain, skip_special_tokens=False)
        cases[name] = {"ids": plain} | ({"decoded": decoded} if decoded != text else {})
    return {"front": front, "back": back, "texts": cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gemma3", type=Path, help="the GGUF file of Gemma 3 270M")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()
    (args.out / FOLDER).mkdir(parents=True, exist_ok=True)

    texts = dict(RULES + MORE_RULES)
    texts |= {f"line_{i}": line for i, line in enumerate(read(MIXED).split("\n"), start=1) if line}
    texts |= {f"random_{i}": text for i, text in zip(range(RANDOM_CASES), random_texts(SEED))}
    trained = trained_pieces()
    pieces = {name: model if isinstance(model, list) else pieces_of(model) for name, model in trained.items()}
    kinds = {
        "qwen2": qwen2(), "gpt_oss": gpt_oss(), "olmo2": olmo2(), "roberta": roberta(), "many_steps": many_steps(),
        "words": words(), "llama2": llama2(pieces["llama2"]), "mixtral": mixtral(pieces["llama2"]),
        "gemma": gemma(pieces["gemma"]), "t5": t5(trained["t5"]), "unigram_bytes": unigram_bytes(trained["unigram_bytes"]),
    }
    golden = args.out / "tokenizer_kinds.json"
    cases = {"gemma3": json.loads(golden.read_text())["cases"].get("gemma3")} if golden.exists() else {}
    for name, tokenizer in kinds.items():
        path = args.out / FOLDER / f"{name}.json"
        write(path, tokenizer.to_str() + "\n")
        # Read back from the file, so that the cases are about what is on disk.
        cases[name] = cases_of(Tokenizer.from_file(str(path)), texts)
    if args.gemma3:
        cases["gemma3"] = cases_of(gemma3(args.gemma3), texts)
    charsmap = base64.b64encode(trained["t5"].normalizer_spec.precompiled_charsmap).decode()
    parts = {"made_with": {"tokenizers": tokenizers.__version__, "sentencepiece": sentencepiece.__version__},
             "texts": texts, "pieces": pieces, "t5_charsmap": charsmap, "cases": cases}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in parts.items())
    write(golden, "{" + lines + "}\n")
    print({name: tokenizer.get_vocab_size() for name, tokenizer in kinds.items()}, len(texts), "texts")


if __name__ == "__main__":
    main()
