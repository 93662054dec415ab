"""A trigram language model of a closed set of transcripts, in the ARPA format that recognisers read.

Smoothing is Witten-Bell back-off (Witten and Bell, IEEE Trans. Information Theory 37(4), 1991, method C). After a history h that
occurred c(h) times with t(h) different successors,

    P(w | h) = c(h w) / (c(h) + t(h))                for a seen successor,
    P(w | h) = b(h) P(w | h without its first word)  else,

with b(h) such that the probabilities sum to one. If every word of the vocabulary followed h, P(w | h) = c(h w) / c(h). Unigrams
are relative frequencies, because the vocabulary is closed.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

START, END = "<s>", "</s>"
ORDER = 3
NEVER = -99.0
"""log10 of zero in the ARPA format, for the start of a sentence, which is never predicted."""

History = tuple[str, ...]


@dataclass(frozen=True)
class TrigramModel:
    """`probabilities[h][w]` of each seen successor w of a history h of 0 to 2 words, and `backoff[h]` for all others."""

    probabilities: Mapping[History, Mapping[str, float]]
    backoff: Mapping[History, float]

    def probability(self, word: str, history: History) -> float:
        """P(word | history) for a history of up to two words; zero outside the vocabulary."""
        successors = self.probabilities.get(history, {})
        if word in successors:
            return successors[word]
        return self.backoff.get(history, 1.0) * self.probability(word, history[1:]) if history else 0.0


def train_trigram(sentences: Iterable[str]) -> TrigramModel:
    """Model of `sentences` (words separated by spaces). `ValueError` if they hold no word."""
    counts: dict[History, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        words = [START, *sentence.split(), END]
        for end in range(1, len(words)):
            for length in range(min(end, ORDER - 1) + 1):
                counts[tuple(words[end - length : end])][words[end]] += 1
    if set(counts[()]) <= {END}:
        raise ValueError("the sentences hold no word")
    probabilities: dict[History, Mapping[str, float]] = {}
    backoff: dict[History, float] = {}
    partial = TrigramModel(probabilities, backoff)
    for history in sorted(counts, key=len):  # shorter histories first: the longer ones back off to them
        successors = counts[history]
        total, kinds = successors.total(), len(successors)
        discounted = bool(history) and kinds < len(counts[()])
        mass = total + kinds if discounted else total
        if discounted:
            unseen = 1 - sum(partial.probability(word, history[1:]) for word in successors)
            backoff[history] = kinds / mass / unseen
        probabilities[history] = {word: count / mass for word, count in successors.items()}
    return TrigramModel(probabilities, backoff)


def to_arpa(model: TrigramModel) -> str:
    """The model as ARPA text: log10 probabilities of its n-grams, with the back-off weights of histories."""
    grams = [
        [(*history, word) for history in model.probabilities if len(history) == order for word in model.probabilities[history]]
        for order in range(ORDER)
    ]
    grams[0].append((START,))
    lines = ["\\data\\", *(f"ngram {order + 1}={len(listed)}" for order, listed in enumerate(grams))]
    for order, listed in enumerate(grams):
        lines += ["", f"\\{order + 1}-grams:", *(_arpa_line(model, gram) for gram in sorted(listed))]
    return "\n".join([*lines, "", "\\end\\", ""])


def _arpa_line(model: TrigramModel, gram: History) -> str:
    logarithm = NEVER if gram == (START,) else math.log10(model.probabilities[gram[:-1]][gram[-1]])
    weight = f"\t{math.log10(model.backoff.get(gram, 1.0)):.6f}" if len(gram) < ORDER and gram[-1] != END else ""
    return f"{logarithm:.6f}\t{' '.join(gram)}{weight}"
