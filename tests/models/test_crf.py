"""The random field against every tagging written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models.crf import (
    FORBIDDEN,
    NOISE,
    SCHEMES,
    Places,
    best_path,
    forbid,
    log_partition,
    nearest,
    odd_step,
    path_score,
    viterbi,
)

TAGS = 3


def by_hand(scores, weights, tags, opens=True, closes=True) -> float:
    """Score one tagging of one sequence, as the definition says."""
    steps, start, end = weights
    total = opens * start[tags[0]] + closes * end[tags[-1]] + sum(row[tag] for row, tag in zip(scores, tags))
    return float(total + sum(steps[a, b] for a, b in itertools.pairwise(tags)))


def every(scores, weights, *edges) -> dict[tuple[int, ...], float]:
    taggings = itertools.product(range(len(weights[1])), repeat=len(scores))
    return {tags: by_hand(scores, weights, tags, *edges) for tags in taggings}


@pytest.fixture(scope="module", params=["sentences", "pieces"])
def case(request):
    """Rows of one sequence, of three, and of none; scores and tags of 7 words. Pieces are cut at one end, or at both."""
    rng = np.random.default_rng(0)
    lengths = [[5], [2, 1, 4], []]
    real = np.array([np.arange(7) < sum(row) for row in lengths])
    begins, opens, closes = (np.zeros_like(real) for _ in range(3))
    edges = iter([(True, False), (False, True), (False, False), (True, False)])
    for row, sizes in enumerate(lengths):
        for low, high in itertools.pairwise(np.cumsum([0, *sizes])):
            begins[row, low] = True
            opens[row, low], closes[row, high - 1] = (True, True) if request.param == "sentences" else next(edges)
    weights = rng.normal(size=(TAGS, TAGS)), rng.normal(size=TAGS), rng.normal(size=TAGS)
    weights = tuple(x.astype(np.float32) for x in weights)
    scores = rng.normal(size=(3, 7, TAGS)).astype(np.float32)
    return lengths, scores, rng.integers(0, TAGS, (3, 7)), Places(real, begins, opens, closes), weights


def sequences(lengths, places, *arrays):
    """Cut each row's arrays into its sequences; tell whether they open and close a sentence."""
    for row, sizes in enumerate(lengths):
        for low, high in itertools.pairwise(np.cumsum([0, *sizes])):
            edges = places.opens[row, low], places.closes[row, high - 1]
            yield row, low, high, edges, *(x[row, low:high] for x in arrays)


def test_sums_and_paths_are_those_of_every_tagging(case):
    lengths, scores, tags, places, weights = case
    log_z, path = np.zeros(3), np.zeros(3)
    for row, _, _, edges, own, chosen in sequences(lengths, places, scores, tags):
        log_z[row] += np.logaddexp.reduce(list(every(own, weights, *edges).values()))
        path[row] += by_hand(own, weights, chosen, *edges)
    np.testing.assert_allclose(log_partition(scores, places, weights), log_z, rtol=1e-5)
    np.testing.assert_allclose(path_score(scores, tags, places, weights), path, rtol=1e-5, atol=1e-6)


def test_the_best_tagging_is_the_best_of_all(case):
    lengths, scores, _, places, weights = case
    found = viterbi(scores, places, weights)
    for row, low, high, edges, own in sequences(lengths, places, scores):
        every_one = every(own, weights, *edges)
        assert tuple(found[row, low:high].tolist()) == max(every_one, key=every_one.get)
        if all(edges):
            assert best_path(own, weights) == found[row, low:high].tolist()


def test_the_gradient_of_the_sum_is_the_probability_of_each_tag(case):
    """d logZ / d score[t, j] is p(tag t = j): what forward and backward would find."""
    lengths, scores, _, places, weights = case
    found = jax.grad(lambda s: log_partition(s, places, weights).sum())(jnp.asarray(scores))
    expected = np.zeros_like(scores)
    for row, low, _, edges, own in sequences(lengths, places, scores):
        every_one = every(own, weights, *edges)
        log_z = np.logaddexp.reduce(list(every_one.values()))
        for tags, score in every_one.items():
            for t, tag in enumerate(tags):
                expected[row, low + t, tag] += np.exp(score - log_z)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# -- schemes -----------------------------------------------------------------------------------------------------------

LETTERS = {"IOB1": "BI", "IOB2": "BI", "IOBES": "BIES", "BILOU": "BILU", "BMES": "BMES"}


def segmentations(count: int):
    """All ways to part words into spans (kind, size): of kind X or Y, or one word outside."""
    if not count:
        yield ()
    for size in range(1, count + 1):
        for kind in "XY" if size > 1 else "OXY":
            for others in segmentations(count - size):
                yield ((kind, size), *others)


def written(spans, form: str) -> tuple[str, ...]:
    """Write spans as tags, as the definition of each scheme says."""
    tags, last = [], "O"
    begin, inside, *ends = LETTERS[form]
    for kind, size in spans:
        if kind == "O":
            tags.append("O")
        elif ends:
            last_letter, single = ends
            letters = single if size == 1 else begin + inside * (size - 2) + last_letter
            tags += [f"{letter}-{kind}" for letter in letters]
        else:
            first = inside if form == "IOB1" and last != kind else begin
            tags += [f"{letter}-{kind}" for letter in first + inside * (size - 1)]
        last = kind
    return tuple(tags)


@pytest.mark.parametrize("form", LETTERS)
def test_what_is_allowed_is_what_writes_spans(form):
    """Of all taggings of up to four words the possible ones are those that spans are written as, each one once."""
    scheme = form if form in SCHEMES else "IOBES"
    names = ("O", *(f"{letter}-{kind}" for letter in LETTERS[form] for kind in "XY"))
    nothing = np.zeros((len(names),) * 2), np.zeros(len(names)), np.zeros(len(names))
    bounded = tuple(np.asarray(x) for x in forbid(nothing, names, scheme))
    for count in range(1, 5 if len(names) < 9 else 4):
        spans = list(segmentations(count))
        expected = {written(one, form) for one in spans}
        found = every(np.zeros((count, len(names))), bounded)
        assert {tuple(names[tag] for tag in tags) for tags, score in found.items() if score > FORBIDDEN / 2} == expected
        assert len(expected) == len(spans)
        for tags in found:
            assert bool(odd_step(scheme, [names[tag] for tag in tags])) == (found[tags] < FORBIDDEN / 2)


def test_what_a_scheme_forbids_is_never_found():
    names = ("O", "B-X", "I-X", "B-Y", "I-Y")
    rng = np.random.default_rng(1)
    weights = np.zeros((5, 5), np.float32), np.zeros(5, np.float32), np.zeros(5, np.float32)
    bounded = forbid(weights, names, "IOB2")
    assert (np.asarray(bounded[0]) == FORBIDDEN).sum() == 3 * 2  # I-X after all but B-X and I-X; I-Y the same
    scores = rng.normal(size=(40, 6, 5)).astype(np.float32) + np.array([0, 0, 2, 0, 2], np.float32)
    real, begins, closes = np.ones((40, 6), bool), np.zeros((40, 6), bool), np.zeros((40, 6), bool)
    begins[:, [0, 3]] = closes[:, [2, 5]] = True

    def wrong(weights, opens) -> int:
        """Count sequences of three words that are not IOB2; where they are pieces, I- may be first."""
        found = np.asarray(viterbi(scores, Places(real, begins, opens, closes), weights)).reshape(-1, 3)
        parts = [[names[tag] for tag in row] for row in found]
        return sum(bool(odd_step("IOB2", part if opens.any() else [part[0].replace("I", "B"), *part[1:]])) for part in parts)

    assert wrong(weights, begins) > 0
    assert wrong(bounded, begins) == 0
    assert wrong(weights, np.zeros_like(begins)) > 0
    assert wrong(bounded, np.zeros_like(begins)) == 0
    first = viterbi(scores, Places(real, begins, np.zeros_like(begins), closes), bounded)[:, [0, 3]]
    assert np.isin(first, [2, 4]).any()


@pytest.mark.parametrize("form", LETTERS)
def test_the_scheme_is_found_in_the_tags(form):
    """All alike, and with a slip in one of a hundred sentences; where two schemes are mixed, none fits."""
    rng = np.random.default_rng(2)
    ways = list(segmentations(6))
    spans = [ways[i] for i in rng.integers(0, len(ways), 300)]
    tags = [written(one, form) for one in spans]
    scheme = form if form in SCHEMES else "IOBES"
    assert nearest(tags) == (scheme, 0)
    inside = f"{LETTERS[form][1]}-X"
    slips = [("O", f"{LETTERS[form][0]}-X" if form == "IOB1" else inside, "O")] * 3
    found, share = nearest([*tags, *slips])
    assert found == scheme
    assert 0 < share < NOISE
    other = "IOB2" if form == "IOB1" else "IOB1"
    assert nearest([*tags, *(written(one, other) for one in spans)])[1] > NOISE


def test_tags_of_other_kinds_have_no_scheme():
    assert nearest([("DET", "NOUN", "B", "I-"), ("O",)]) == ("none", 0)
    assert nearest([("B-X", "O"), ("NOUN", "B-X")]) == ("IOB2", 0)
    assert nearest([("O", "I-X", "I-Y")]) == ("IOB1", 0)
    assert nearest([("I-X", "E-X", "O", "E-X")])[1] > NOISE  # IOE2


def test_an_odd_step_is_worded():
    assert odd_step("IOB2", ["I-X", "O"]) == "I-X first"
    assert odd_step("IOB2", ["O", "B-X", "I-Y"]) == "I-Y after B-X at word 3"
    assert odd_step("IOBES", ["O", "B-X"]) == "B-X last"
