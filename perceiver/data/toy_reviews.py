"""A built-in data set of made-up film reviews, for trying things out without a download.

Whether a review is positive does not follow from its words alone. Nearly every word of praise or blame can be negated,
conceded before a "but", said of another film, or put into the mouth of someone the writer contradicts; the writer's own
view is what counts, and it is never ambiguous. Words fit each other: verbs their objects, attributes what they are said
of, and people and scenes the genre.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import datasets

from perceiver.data.toy_words import (
    ADJECTIVES,
    ASPECTS,
    CALLED,
    COMMON_ASPECTS,
    DEGREES,
    FILMS,
    GENRES,
    OCCASIONS,
    OTHERS,
    PEOPLE,
    PLURAL_ASPECTS,
    SAVED,
    VERDICTS,
)

CLASS_NAMES = ("neg", "pos")
DESCRIPTION = "Synthetic film reviews, written by a program: no person holds the opinions in them."
_MIN_WORDS, _MAX_WORDS = 12, 60


def toy_reviews(
    seed: int = 0, num_train: int = 4000, num_test: int = 1000, num_unsupervised: int = 4000
) -> datasets.DatasetDict:
    """Write film reviews; no text occurs twice, and half of them are positive.

    Args:
        seed: Seed of the texts.
        num_train: Reviews in the split train.
        num_test: Reviews in the split test.
        num_unsupervised: Reviews in the split unsupervised, whose labels are -1.

    Returns:
        Splits with the columns text and label (0 negative, 1 positive).
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    sizes = {"train": num_train, "test": num_test, "unsupervised": num_unsupervised}
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(CLASS_NAMES))}
    )
    info = datasets.DatasetInfo(description=DESCRIPTION, features=features)
    splits = datasets.DatasetDict()
    for name, size in sizes.items():
        labels = [index % 2 for index in range(size)]
        rng.shuffle(labels)
        columns = {
            "text": [_new_review(rng, label, seen) for label in labels],
            "label": [-1] * size if name == "unsupervised" else labels,
        }
        splits[name] = datasets.Dataset.from_dict(columns, info=info)
    return splits


def _new_review(rng: random.Random, label: int, seen: set[str]) -> str:
    while True:
        text = _Review(rng, label).text()
        if text not in seen and _MIN_WORDS <= len(text.split()) <= _MAX_WORDS:
            seen.add(text)
            return text


class _Review:
    """The writer of one review, with a genre and a view: 0 against the film, 1 for it."""

    def __init__(self, rng: random.Random, view: int) -> None:
        self.rng, self.view = rng, view
        self.genre = rng.choice(GENRES)
        self.film = rng.choice(FILMS)
        self.aspects = self._draw_aspects()

    def text(self) -> str:
        opinions: list[Callable[[], str]] = [
            *[self.stated] * 8,
            *[self.watched] * 4,
            *(self.negated, self.contrasted, self.contrasted, self.compared, self.expected, self.contradicted),
        ]
        sentences = [self.opened()] if self.rng.random() < 0.55 else []
        for _ in range(self.rng.choice((1, 1, 2, 2, 3))):
            opinion = self.rng.choice(opinions)
            sentences.append(opinion())
            if opinion != self.stated:  # the others sound odd twice
                opinions = [other for other in opinions if other != opinion]
        return " ".join(f"{sentence[0].upper()}{sentence[1:]}" for sentence in sentences)

    def opened(self) -> str:
        """Say what the film is about, without any opinion."""
        pick, genre = self.rng.choice, self.genre
        verb, objects = pick(genre.deeds)
        deed = f"{pick(ADJECTIVES)} {pick(genre.heroes)} who {verb} {pick(objects)}"
        return pick(
            (
                f"This {pick(genre.kinds)} is about a {deed} {pick(genre.places)}.",
                f"A {deed}: that is the story of this {self.film}.",
                f"The {self.film} follows a {deed} {pick(genre.places)}.",
                f"I watched this {pick(genre.kinds)} {pick(OCCASIONS)}.",
                f"I had waited months for {pick(genre.scenes)} in this {pick(genre.kinds)}.",
            )
        )

    def watched(self) -> str:
        """Give a verdict on the whole film or one aspect, plainly or by denying the opposite."""
        pick, view = self.rng.choice, self.view
        name, subject = self._aspect()
        subject, words = pick((("it was", VERDICTS), ("it was", VERDICTS), (subject, ASPECTS[name])))
        seen = f"I have {pick(('watched', 'seen'))} this {self.film}"
        return pick(
            (
                f"{seen} and {subject} {pick(words[view])}.",
                f"{seen} and {subject} {pick(DEGREES)} {pick(words[view])}.",
                f"{seen} {pick(OCCASIONS)} and {subject} {pick(words[view])}.",
                f"{seen} and {subject} not {pick(words[1 - view])} at all.",
            )
        )

    def stated(self) -> str:
        """Praise or blame one aspect."""
        pick = self.rng.choice
        name, subject = self._aspect()
        word = pick(ASPECTS[name][self.view])
        return pick(
            (
                f"{subject} {pick(DEGREES)} {word}.",
                f"I found the {name} {word}, above all in {pick(self.genre.scenes)}.",
                f"{subject} {word} from {pick(self.genre.scenes)} to the last minute.",
                f"As for the {name}, {word} is the only word.",
            )
        )

    def negated(self) -> str:
        """Deny the opposite of the view."""
        pick = self.rng.choice
        name, subject = self._aspect()
        word, verdict = pick(ASPECTS[name][1 - self.view]), pick(VERDICTS[1 - self.view])
        return pick(
            (
                f"{subject} not {word} at all.",
                f"{subject} anything but {word}, and {pick(self.genre.scenes)} is the proof.",
                f"Nobody could call the {name} {word}.",
                f"There is nothing {verdict} about this {self.film}.",
                f"I would hardly call {pick(self.genre.scenes)} {verdict}.",
                f"{subject} never {word}, not even in {pick(self.genre.scenes)}.",
            )
        )

    def contrasted(self) -> str:
        """Concede something, and decide against it; the concession comes first or last."""
        pick, view = self.rng.choice, self.view
        name, subject = self._aspect()
        other, other_subject = self._aspect()
        word, conceded = pick(ASPECTS[name][view]), pick(ASPECTS[other][1 - view])
        return pick(
            (
                f"{other_subject} {conceded}, but the {name} {pick(SAVED[view])} it.",
                f"{other_subject} {conceded}, but {subject} {word}, and that decides it for me.",
                f"Even though {other_subject} {conceded}, the {word} {name} mattered more to me.",
                f"The {word} {name} mattered more to me, even though {other_subject} {conceded}.",
                f"It hardly matters that {other_subject} {conceded}, because {subject} so {word}.",
            )
        )

    def compared(self) -> str:
        """Set the film against another one."""
        pick, view = self.rng.choice, self.view
        name, _ = self._aspect()
        other = pick(OTHERS)
        ours, theirs = ASPECTS[name][view], ASPECTS[name][1 - view]
        degree, verdict = pick((("far more", VERDICTS[view]), ("far less", VERDICTS[1 - view])))
        return pick(
            (
                f"It is {degree} {pick(verdict)} than {other}.",
                f"{other} was {pick(VERDICTS[1 - view])}, and this {self.film} is the opposite.",
                f"Unlike {other}, which had {pick(theirs)} {name}, this one has {pick(ours)} {name}.",
                f"It is nowhere near as {pick(VERDICTS[1 - view])} as {other}.",
            )
        )

    def expected(self) -> str:
        """Tell what was expected, and that it came otherwise; or hedge before the verdict."""
        pick, view = self.rng.choice, self.view
        wrong, right = pick(VERDICTS[1 - view]), pick(VERDICTS[view])
        return pick(
            (
                f"I expected something {wrong} and got the opposite.",
                f"The first half hour is {wrong}, yet in the end the {self.film} is {right}.",
                f"I wanted to call this {self.film} {wrong}, and I simply cannot.",
                f"It may look {wrong} at first, but do not be fooled.",
                f"I was sure that it would be {wrong}, and I was wrong.",
            )
        )

    def contradicted(self) -> str:
        """Report what somebody else thinks; the writer contradicts or, now and then, agrees."""
        pick, view = self.rng.choice, self.view
        person = pick(PEOPLE)
        name, _ = self._aspect()
        wrong, right = pick(VERDICTS[1 - view]), pick(VERDICTS[view])
        return pick(
            (
                f"{person} called it {wrong}, and I could not disagree more.",
                f"{person} called it {right}, and for once I agree.",
                f"{person} {pick(CALLED[1 - view])} the {name}, and I have no idea why.",
                f"{person} {pick(CALLED[view])} the {name}, and I understand why.",
                f"Do not believe {person}: this {self.film} is not {wrong}.",
            )
        )

    def _draw_aspects(self) -> Iterator[str]:
        names = [*COMMON_ASPECTS, *self.genre.aspects * 2]
        self.rng.shuffle(names)
        return iter(dict.fromkeys(names))

    def _aspect(self) -> tuple[str, str]:
        """Take an aspect that was not mentioned yet; return its name and the start of a sentence about it."""
        name = next(self.aspects)
        return name, f"the {name} {'were' if name in PLURAL_ASPECTS else 'was'}"
