"""Vocabulary of the toy reviews: what a film of each genre has, and what can be said about it.

Pairs hold (negative, positive) words, so that a class indexes them.
"""

from __future__ import annotations

from dataclasses import dataclass

WordPair = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Genre:
    """What belongs together in films of one genre."""

    kinds: tuple[str, ...]
    heroes: tuple[str, ...]
    deeds: tuple[tuple[str, tuple[str, ...]], ...]
    """Verbs, each with objects that fit it."""
    places: tuple[str, ...]
    scenes: tuple[str, ...]
    aspects: tuple[str, ...]
    """Aspects that only films of this genre have."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _genre(kinds: str, heroes: str, deeds: dict[str, str], places: str, scenes: str, aspects: str) -> Genre:
    fitting = tuple((verb, _words(objects)) for verb, objects in deeds.items())
    return Genre(_words(kinds), _words(heroes), fitting, _words(places), _words(scenes), _words(aspects))


GENRES = (
    _genre(
        "western",
        "sheriff, outlaw, rancher, bounty hunter, widow",
        {"hunts": "a gang of rustlers, an old rival, a bank robber", "defends": "a frontier town, a railway camp"},
        "in Wyoming, near the border, in a silver mine, on the prairie",
        "the duel at noon, the cattle drive, the saloon brawl, the train robbery",
        "gunfights, landscapes",
    ),
    _genre(
        "thriller",
        "detective, journalist, spy, hacker, prosecutor",
        {"tracks": "a killer, a stolen file, a missing witness", "uncovers": "a conspiracy, a forgery, a betrayal"},
        "in Lisbon, in a foggy harbour, on a night train, at the embassy",
        "the car chase, the interrogation, the final twist, the hostage scene",
        "twists, chases",
    ),
    _genre(
        "comedy",
        "waiter, wedding planner, dentist, flatmate, taxi driver",
        {"loses": "a winning ticket, the wedding ring, a rented suit", "insults": "his boss, the mayor, her neighbour"},
        "in Naples, at a resort, in a tiny flat, at a family reunion",
        "the dinner party, the airport scene, the speech, the dance contest",
        "jokes, gags",
    ),
    _genre(
        "romance",
        "florist, pianist, librarian, nurse, soldier",
        {"marries": "a stranger, a childhood friend", "writes letters to": "a sailor, a married poet, a lost love"},
        "in Paris, in a seaside village, during one summer, in Vienna",
        "the first kiss, the farewell at the station, the proposal, the reunion",
        "love scenes, letters",
    ),
    _genre(
        "horror film",
        "babysitter, priest, student, caretaker, surgeon",
        {"wakes": "a demon, an ancient curse", "escapes from": "a masked murderer, a pack of wolves, a haunted doll"},
        "in an empty asylum, in a cabin, in the woods, below the chapel",
        "the cellar scene, the exorcism, the first murder, the seance",
        "scares, makeup",
    ),
    _genre(
        "musical",
        "singer, dancer, composer, street artist, chorus girl",
        {"joins": "a travelling circus, a jazz band", "rehearses": "a forbidden opera, a duet, the closing number"},
        "on Broadway, in Harlem, at the conservatory, in a ballroom",
        "the opening number, the audition, the rooftop dance, the curtain call",
        "songs, dances",
    ),
    _genre(
        "war drama",
        "medic, sergeant, deserter, pilot, interpreter",
        {"rescues": "a wounded officer, a lost platoon", "guards": "a bridge, a prison camp, a convoy of refugees"},
        "in Normandy, behind enemy lines, in the desert, on the eastern front",
        "the landing, the night raid, the ambush, the funeral",
        "battles, uniforms",
    ),
    _genre(
        "science fiction film",
        "astronaut, robot, smuggler, biologist, cadet",
        {
            "repairs": "a drifting station, a broken reactor",
            "discovers": "an alien signal, a second earth, a time loop",
        },
        "on Mars, in orbit, in a colony under the ice, near a dying star",
        "the launch, the first contact, the spacewalk, the escape from the planet",
        "spaceships, miniatures",
    ),
)

FILMS = ("film", "movie")
PLURAL_ASPECTS = frozenset(
    _words(
        "costumes, effects, performances, characters, gunfights, landscapes, twists, chases, jokes, gags, love scenes, "
        "letters, scares, songs, dances, battles, uniforms, spaceships, miniatures"
    )
)

ASPECTS: dict[str, WordPair] = {
    "acting": (_words("wooden, stiff, hammy, lifeless"), _words("nuanced, heartfelt, magnetic, restrained")),
    "plot": (_words("predictable, muddled, contrived, thin"), _words("gripping, clever, intricate, suspenseful")),
    "score": (_words("grating, syrupy, intrusive, repetitive"), _words("haunting, soaring, stirring, delicate")),
    "dialogue": (_words("clumsy, stilted, corny, preachy"), _words("witty, sharp, crisp, quotable")),
    "camera work": (_words("shaky, murky, drab, ugly"), _words("gorgeous, luminous, elegant, inventive")),
    "pacing": (_words("sluggish, uneven, glacial, choppy"), _words("brisk, taut, confident, unhurried")),
    "ending": (_words("rushed, abrupt, hollow, ridiculous"), _words("satisfying, moving, poignant, bold")),
    "direction": (_words("aimless, lazy, clueless, timid"), _words("assured, subtle, stylish, daring")),
    "editing": (_words("choppy, sloppy, frantic, confusing"), _words("fluid, precise, rhythmic, seamless")),
    "costumes": (_words("tacky, shabby, distracting"), _words("lavish, exquisite, authentic")),
    "effects": (_words("fake, cheap, dated, laughable"), _words("dazzling, seamless, imaginative, spectacular")),
    "performances": (_words("wooden, bland, overdone"), _words("fearless, touching, convincing")),
    "characters": (_words("flat, annoying, unlikable, shallow"), _words("layered, believable, lovable, vivid")),
    "gunfights": (_words("endless, clumsy, silly"), _words("tense, thrilling, spectacular")),
    "landscapes": (_words("drab, fake"), _words("majestic, breathtaking")),
    "twists": (_words("obvious, absurd, contrived"), _words("surprising, clever, ingenious")),
    "chases": (_words("repetitive, endless, confusing"), _words("thrilling, breathless, inventive")),
    "jokes": (_words("stale, crude, forced, childish"), _words("sly, hilarious, warm, deadpan")),
    "gags": (_words("tired, crude, lame"), _words("hilarious, inventive, fresh")),
    "love scenes": (_words("awkward, corny, cold"), _words("tender, sensual, honest")),
    "letters": (_words("preachy, syrupy"), _words("tender, poignant, honest")),
    "scares": (_words("cheap, obvious, lame"), _words("terrifying, chilling, effective")),
    "makeup": (_words("cheap, laughable, fake"), _words("gruesome, convincing, creepy")),
    "songs": (_words("forgettable, shrill, bland"), _words("catchy, memorable, uplifting")),
    "dances": (_words("clumsy, stiff"), _words("graceful, electric, joyful")),
    "battles": (_words("chaotic, bloodless, endless"), _words("harrowing, intense, realistic")),
    "uniforms": (_words("shabby, inaccurate"), _words("authentic, flawless")),
    "spaceships": (_words("clunky, dated, plastic"), _words("sleek, majestic, imaginative")),
    "miniatures": (_words("clunky, laughable"), _words("charming, flawless")),
}
COMMON_ASPECTS = tuple(list(ASPECTS)[:13])

VERDICTS: WordPair = (
    _words("terrible, awful, boring, dreadful, tedious, dull, disappointing, pointless, bland, forgettable"),
    _words("awesome, wonderful, brilliant, superb, charming, great, fascinating, rewarding, excellent, unforgettable"),
)
"""What can be said about a whole film."""

SAVED: WordPair = (_words("ruined, spoiled, sank"), _words("saved, rescued, redeemed"))
CALLED: WordPair = (_words("panned, mocked, trashed, dismissed"), _words("praised, adored, recommended, celebrated"))
"""What other people did with a film."""
PEOPLE = (
    *("my brother", "my sister", "my boss", "my neighbour", "a friend of mine", "my old teacher", "our local paper"),
    *("my wife", "my husband", "everyone at work", "the man behind me", "my cousin"),
)
OCCASIONS = (
    *("on a rainy Sunday", "on a long flight", "at a festival", "late at night", "with my parents", "on television"),
    *("in an almost empty cinema", "during the holidays", "with low expectations", "after a bad week", "twice"),
    *("for the first time in years", "on a tiny screen", "with subtitles", "without knowing anything about it"),
)
ADJECTIVES = _words("lonely, young, retired, stubborn, disgraced, clever, grieving, restless, penniless, famous, shy")
DEGREES = _words("really, truly, quite, rather, simply, surprisingly, thoroughly, very, remarkably, absolutely")
OTHERS = _words("the original, the sequel, the book, the remake, the trailer, the television series")
