"""Trains the tokenizer: CLIP's own kind, with a vocabulary for the captions of scenes.py.

``python -m bases.tiny.recipe.tokenizer --out tokenizer``

All single bytes stay in the vocabulary, so that any text can be written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from .material import concepts
from .scenes import COLOURS, PLACEHOLDERS, SCENES, with_article

VOCABULARY = 2048
MAX_TOKENS = 24
WORD_END = "</w>"
# CLIP's own way to cut a text into words (Radford et al. 2021, tokenizer of the released model).
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def captions(icon_sets: Path) -> list[str]:
    """Captions in about the proportions that the painter writes them."""
    nouns = [f"a photo of {with_article(name.replace('-', ' '))}" for name in concepts(icon_sets)]
    walls = [f"on {with_article(colour)} background" for colour in COLOURS]
    words = "dog cat style painting drawing small big two the my with and in front wearing holding"
    frequent = [*walls, *SCENES, *(f"a photo of {noun}" for noun in PLACEHOLDERS)]
    return nouns * 4 + frequent * 40 + words.split() * 20


def train(texts: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer of the texts, in transformers' class."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            min_frequency=2,
            initial_alphabet=alphabet,
            end_of_word_suffix=WORD_END,
            show_progress=False,
        ),
    )
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = dict(model["vocab"])
    singles = [text for letter in alphabet for text in (letter, letter + WORD_END)]
    for text in (*singles, "<|startoftext|>", "<|endoftext|>"):
        vocabulary.setdefault(text, len(vocabulary))
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=[tuple(pair) for pair in model["merges"]],
        model_max_length=MAX_TOKENS,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--icons", type=Path, default=Path("node_modules/@iconify-json"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train(captions(args.icons)).save_pretrained(args.out)


if __name__ == "__main__":
    main()
