#!/usr/bin/env python3
"""Makes tokenizer_text.json and two tiny tokenizer.json files: text and the ids that `tokenizers` gives for it.

    ./make_tokenizer_golden.py --model SmolLM2-135M-Instruct.Q4_1.gguf --out .

Three tokenizers appear as "tokenizer" in the cases:

    smollm2                      rebuilt from the GGUF by gguf_tokenizer.py: single digits, then the GPT-2 pattern
    tiny_tokenizer.json          trained here on tiny_corpus.txt: GPT-2 pattern; special tokens and a plain added token
    tiny_tokenizer_llama3.json   trained here: Llama 3 pattern (digits in threes), ignore_merges, BOS by template

Each case has either "text" or "file" (a system file by its path, others beside the JSON), and "ids". Where decoding
the ids does not give the text back, "decoded" holds what it gives instead. Unless "add_special_tokens" is true, no
BOS is added; special tokens written in the text become their single ids in any case.
"""

import argparse
import json
import random
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gguf_tokenizer import file_sha256, tokenizer_from_gguf
from golden_writer import write

HERE = Path(__file__).resolve().parent
LICENSES = [Path("/usr/share/common-licenses") / name for name in ("GPL-3", "MPL-2.0", "Artistic")]
MIXED = HERE / "mixed_scripts.txt"
CORPUS = HERE / "tiny_corpus.txt"
VOCABULARY = 600
RANDOM_CASES = 120
SEED = 20240229

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words that get an id of their own but no merges that lead to it: only `ignore_merges` finds them.
UNREACHABLE = ["zebra", " quokka", "xylophone", "¡Olé", "\n\n\n", "'ſ"]

# (name, text): one rule each. Invisible characters are spelt out.
RULES = [
    ("empty", ""),
    ("one_space", " "),
    ("two_spaces", "  "),
    ("three_spaces_word", "   word"),
    ("word_three_spaces", "word   "),
    ("space_newline_space", "a \n b"),
    ("newlines_then_word", "a\n\n\nb"),
    ("three_newlines", "\n\n\n"),
    ("spaces_before_newline", "a   \nb"),
    ("crlf", "a\r\nb\r\n\r\nc"),
    ("lone_cr", "a\rb\r\rc"),
    ("tabs", "\ta\t\tb\t c \td"),
    ("form_feed_vertical_tab", "a\fb\vc \f\v d"),
    ("unit_separators_are_not_white_space", "a\x1cb\x1fc \x1d d"),
    ("nbsp", "a\u00a0b\u00a0\u00a0c \u00a0d"),
    ("ideographic_space", "a\u3000b\u3000\u3000c"),
    ("nel_ls_ps", "a\u0085b\u2028c\u2029d"),
    ("ogham_and_thin_spaces", "a\u1680b\u2009c\u202fd\u205fe"),
    ("mongolian_vowel_separator_is_not_white_space", "a\u180eb"),
    ("zero_width_are_not_white_space", "a\u200bb\u200cc\u200dd\ufeffe\u2060f"),
    ("digits_one", "7"),
    ("digits_ten", "1234567890"),
    ("digits_after_one_space", "a 1"),
    ("digits_after_two_spaces", "a  1"),
    ("digits_after_five_spaces", "a     12"),
    ("digits_after_newline_and_spaces", "a\n  1"),
    ("digits_in_word", "abc123def4g"),
    ("digits_apostrophe", "the 1990's and 80s' 3'd 5'll"),
    ("digits_decimal", "-3.14159e+10, 1,000.50"),
    ("digits_devanagari", "१२३४५ 1२3"),
    ("digits_arabic_indic", "٣٤٥٦ ۳۴"),
    ("digits_fullwidth", "１２３４ a１"),
    ("numerals_superscript", "x²y³ m² 10⁻³"),
    ("numerals_fraction_roman_circled", "½¾ ⅫⅧ ①②③㊿"),
    ("numerals_mathematical", "𝟘𝟙𝟚𝟛 a𝟙"),
    ("cjk_numerals_are_letters", "一二三四 〇"),
    ("contractions_lower", "I'm you're he's we've they'd she'll don't"),
    ("contractions_upper", "I'M YOU'RE HE'S WE'VE THEY'D SHE'LL DON'T"),
    ("contractions_alone", "'s't 're've 'm 'll'd's"),
    ("contractions_curly", "don’t it’s"),
    ("contractions_followed", "'stop 'really 'more 'lling d'accord l'eau"),
    ("contraction_with_long_s", "'ſ 'ſt it'ſ"),
    ("punctuation_runs", "Hello,,,  world!!! ... -- ($5.00) [x] \"y\""),
    ("punctuation_then_newline", "end.\n\nNew {\n}\n"),
    ("underscores", "__init__ snake_case _x"),
    ("letter_after_symbol", "@name #tag $var %d *bold* /path"),
    ("combining_marks", "e\u0301 a\u0308o \u0301x"),
    ("devanagari_marks", "क्षि नमस्ते"),
    ("thai_marks", "ภาษาไทย กำลัง"),
    ("arabic_marks", "مُحَمَّد"),
    ("hangul_syllables_and_jamo", "한국 \u1112\u1161\u11ab"),
    ("emoji_modifier", "👍🏽 👍"),
    ("emoji_zwj_family", "👨\u200d👩\u200d👧\u200d👦"),
    ("emoji_flag", "🇫🇷🇯🇵"),
    ("emoji_keycap", "1\ufe0f\u20e3 #\ufe0f\u20e3"),
    ("replacement_character", "\ufffd\ufffd a\ufffd"),
    ("nul", "a\x00b"),
    ("controls", "\x01\x02\x03\x7f \x80\x9f"),
    ("byte_04_has_no_token_in_smollm2", "a\x04b"),
    ("byte_04_inside_a_word", "t\x04he wor\x06ld"),
    ("only_bytes_without_token", "\x04\x06\x13\x14\x16\x1d"),
    ("plane_4_has_no_token_for_its_first_byte", "x\U00040000y"),
    ("plane_16", "x\U0010fffdy"),
    ("special_alone", "<|im_start|>"),
    ("special_pair", "<|im_start|><|im_end|>"),
    ("special_between_words", "a<|endoftext|>b"),
    ("special_between_spaces", "a <|endoftext|> b  <|im_end|>  c"),
    ("special_between_digits", "12<|im_end|>34"),
    ("special_splits_contraction", "don<|im_end|>'t"),
    ("special_splits_white_space", "a \n<|im_start|>\n b"),
    ("special_broken", "<|im_start| > <|im_start <im_start> |im_end|>"),
    ("special_nested", "<|im_<|im_end|>start|>"),
    ("special_repeated", "<|endoftext|><|endoftext|><|endoftext|>"),
    ("special_upper_case", "<|IM_START|>"),
    ("special_of_code_models", "<repo_name>x<reponame>y<file_sep>z<filename> <gh_stars>5<jupyter_code>"),
    ("added_plain", "a <think>b</think> c<think>"),
    ("special_of_llama3", "<|begin_of_text|>a<|eot_id|>b <|start_header_id|>user<|end_header_id|>\n\n"),
    ("chat", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi, what's 2+2?<|im_end|>\n"
             "<|im_start|>assistant\n"),
    ("whole_word_without_merges", "zebra zebra quokka quokkas xylophone zebras ¡Olé a\n\n\nb\n\n\n"),
    ("long_run_of_a", "a" * 200),
    ("long_run_of_spaces", "x" + " " * 100 + "y"),
    ("long_run_of_newlines", "x" + "\n" * 70 + "y"),
    ("long_run_of_equals", "=" * 100),
    ("long_run_of_digits", "0123456789" * 12),
    ("alternating", "ab" * 60 + " " + "the" * 40),
]

PIECES = [
    " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "a", "the", " the", "The", "attention", " query",
    "'s", "'t", "'LL", "’s", "'", "\"", ".", "...", ",", "!?", "(", ")", "--", "_", "=", "==", "1", "23", "456", " 7",
    "3.14", "²", "½", "٣", "é", "e\u0301", "ß", "Größe", "ъ", "слово", "λόγος", "שלום", "سلام", "नमस्ते", "ไทย", "中",
    "文字", "日本語", "한국", "😀", "👍🏽", "👩\u200d💻", "🇫🇷", "\u200b", "\ufeff", "\x00", "\x04", "<|im_start|>",
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<think>", "<|", "|>", "{", "}", "//", "#", "return", "    if", "zebra",
]


def special(*texts: str) -> list[AddedToken]:
    return [AddedToken(t, special=True, normalized=False) for t in texts]


def tiny_gpt2() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return tokenizer


def tiny_llama3() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    train(tokenizer, [])

    # As in Llama 3, ids of special tokens come after the vocabulary.
    rules = json.loads(tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in UNREACHABLE:
        spelling = alphabet.pre_tokenize_str(word)[0][0]
        if spelling in vocabulary:
            raise SystemExit(f"{word!r} was learnt from the corpus; choose a word that does not occur in it")
        vocabulary[spelling] = len(vocabulary)
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    tokenizer.add_special_tokens(special(
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos} $B",
                                      special_tokens=[(bos, tokenizer.token_to_id(bos))]),
    ])
    return tokenizer


def train(tokenizer: Tokenizer, special_tokens: list[AddedToken]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special_tokens,
        show_progress=False,
    )
    tokenizer.train([str(CORPUS)], trainer)


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")  # bytes, so that CR LF stays as it is


def random_texts(seed: int):
    source = random.Random(seed)
    for _ in range(RANDOM_CASES):
        yield "".join(source.choice(PIECES) for _ in range(source.randint(2, 24)))


def case(tokenizer: Tokenizer, which: str, name: str, text: str, add_special_tokens=False, file=None) -> dict:
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    result = {"tokenizer": which, "name": name}
    result |= {"file": file[0], "file_sha256": file[1]} if file else {"text": text}
    if add_special_tokens:
        result["add_special_tokens"] = True
    result["ids"] = ids
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    if decoded != text:
        result["decoded"] = decoded
    return result


def license_cases(tokenizer: Tokenizer, which: str):
    for path in LICENSES:
        yield case(tokenizer, which, path.name, read(path), file=(str(path), file_sha256(path)))


def cases_of(tokenizer: Tokenizer, which: str):
    yield case(tokenizer, which, MIXED.stem, read(MIXED), file=(MIXED.name, file_sha256(MIXED)))
    for number, line in enumerate(read(MIXED).split("\n"), start=1):
        yield case(tokenizer, which, f"{MIXED.stem}_line_{number}", line)
    for name, text in RULES:
        yield case(tokenizer, which, name, text)
    for number, text in enumerate(random_texts(SEED), start=1):
        yield case(tokenizer, which, f"random_{number}", text)
    for name, text in RULES[:3] + [("words", "the next word"), ("bos_written", "<|begin_of_text|>the<|endoftext|>")]:
        yield case(tokenizer, which, f"{name}_with_special_tokens", text, add_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    tiny, llama3 = tiny_gpt2(), tiny_llama3()
    write(args.out / "tiny_tokenizer.json", tiny.to_str(pretty=True) + "\n")
    write(args.out / "tiny_tokenizer_llama3.json", llama3.to_str(pretty=True) + "\n")
    smollm2 = tokenizer_from_gguf(args.model)
    cases = [
        *license_cases(smollm2, "smollm2"),
        *cases_of(smollm2, "smollm2"),
        # Read back from the files, so that the cases are about what is on disk.
        *cases_of(Tokenizer.from_file(str(args.out / "tiny_tokenizer.json")), "tiny_tokenizer.json"),
        *cases_of(Tokenizer.from_file(str(args.out / "tiny_tokenizer_llama3.json")), "tiny_tokenizer_llama3.json"),
    ]
    header = {"model": args.model.name, "model_sha256": file_sha256(args.model),
              "made_with": {"tokenizers": tokenizers.__version__}}
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    write(args.out / "tokenizer_text.json", json.dumps(header)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n")
    print(f"{len(cases)} cases; tiny vocabularies {tiny.get_vocab_size()} and {llama3.get_vocab_size()}")


if __name__ == "__main__":
    main()
