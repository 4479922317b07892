"""jieba's segmentation as compiled functions: the same words, a hundred times faster.

The likeliest path through the words of the dictionary (a unigram model), and a hidden Markov model with the states
B(egin), E(nd), M(iddle), S(ingle) where single characters are left over, as in jieba 0.42 (`cut(HMM=True)`): the same
numbers are added in the same order, and ties go the same way. Dictionary and model are those that jieba ships.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from math import log
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.corpus.compiled import compiled
from pipeline.corpus.repetition import Hashes, find_slot, new_table
from pipeline.corpus.words import Codes, Spans

FIRST, LAST = 0x4E00, 0x9FD5  # the characters that jieba looks up; other Han are words by themselves
_NEVER = -3.14e100  # the log probability of what the model has not seen
_STATES = "BEMS"  # in the order in which jieba breaks ties
_B, _E, _M, _S = range(4)
# Key of an edge of the dictionary's tree: node and character; never 0, as the root's edges are an array of their own.
_BITS, _ODD, _HALF = np.uint64(21), np.uint64(0x9E3779B97F4A7C15), np.uint64(32)


class Model(NamedTuple):  # compiled functions take named tuples
    """The dictionary as a tree of characters, and the hidden Markov model.

    roots: node of each first character, (LAST - FIRST + 1,), 0 where there is none. edges, children: open hash table.
    weights: log probability of the word that ends at each node; above 0 where none does. unseen: of a character that
    is no word. start: (4,), step: (4, 4) from, to; emit: (LAST - FIRST + 1, 4); log probabilities.
    """

    roots: npt.NDArray[np.int32]
    edges: Hashes
    children: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float64]
    unseen: float
    start: npt.NDArray[np.float64]
    step: npt.NDArray[np.float64]
    emit: npt.NDArray[np.float64]


@functools.cache
def jieba_model() -> Model:
    """jieba's own dictionary and model, read from its package: its cache is a file in /tmp that anyone may write."""
    import jieba
    from jieba.finalseg import prob_emit, prob_start, prob_trans

    counts: dict[str, int] = {}
    total = 0
    with jieba.Tokenizer().get_dict_file() as file:
        for line in file.read().decode("utf-8").splitlines():
            word, count = line.split(" ")[:2]
            counts[word] = int(count)
            total += int(count)
    words = [word for word in counts if ord(min(word)) >= FIRST and ord(max(word)) <= LAST]
    ends = np.cumsum([len(word) for word in words], dtype=np.int64)
    joined = np.frombuffer("".join(words).encode("utf-32-le"), "<u4")
    whole = log(total)
    weights = np.array([log(counts[word]) - whole if counts[word] else 1.0 for word in words])
    roots, edges, children, node_weights = build_tree(joined, ends, weights)
    return Model(
        roots,
        edges,
        children,
        node_weights,
        log(1) - whole,
        np.array([prob_start.P[state] for state in _STATES]),
        np.array([[prob_trans.P[one].get(other, _NEVER) for other in _STATES] for one in _STATES]),
        _emissions(prob_emit.P),
    )


def _emissions(given: Mapping[str, Mapping[str, float]]) -> npt.NDArray[np.float64]:
    table = np.full((LAST - FIRST + 1, 4), _NEVER)
    for number, state in enumerate(_STATES):
        for character, value in given[state].items():
            if FIRST <= ord(character) <= LAST:
                table[ord(character) - FIRST, number] = value
    return table


@compiled
def _edge(node: int, code: Any) -> Any:
    key = ((np.uint64(node) << _BITS) | np.uint64(code)) * _ODD
    return key ^ (key >> _HALF)  # both steps can be undone: different edges keep different keys


@compiled
def build_tree(joined: Codes, ends: Any, word_weights: Any) -> Any:
    """(roots, edges, children, weights) of words that lie one after another in `joined`."""
    roots = np.zeros(LAST - FIRST + 1, np.int32)
    edges = new_table(len(joined))
    children = np.zeros(len(edges), np.int32)
    weights = np.full(len(joined) + 1, 1.0)
    nodes = 0
    begin = 0
    for word in range(len(ends)):
        node = 0
        for place in range(begin, ends[word]):
            if place == begin:
                child = roots[joined[place] - FIRST]
                if child == 0:
                    nodes += 1
                    child = roots[joined[place] - FIRST] = nodes
            else:
                key = _edge(node, joined[place])
                slot = find_slot(edges, key)
                if edges[slot] == np.uint64(0):
                    nodes += 1
                    edges[slot] = key
                    children[slot] = nodes
                child = children[slot]
            node = child
        weights[node] = word_weights[word]
        begin = ends[word]
    return roots, edges, children, weights[: nodes + 1].copy()


@compiled
def _child(model: Model, node: int, code: Any) -> Any:
    """The node below a node; 0 where there is none."""
    key = _edge(node, code)
    slot = find_slot(model.edges, key)
    return model.children[slot] if model.edges[slot] == key else np.int32(0)


@compiled
def cut_run(codes: Codes, first: int, end: int, model: Model, spans: Spans, count: int) -> int:
    """Append the words of codes[first:end], all from FIRST to LAST, to spans[count:]; returns the new count."""
    size = end - first
    best = np.zeros(size + 1)  # of the likeliest way from each character to the end
    ends = np.empty(size, np.int32)  # where the first word of that way ends
    for place in range(size - 1, -1, -1):
        node = model.roots[codes[first + place] - FIRST]
        ends[place] = place + 1
        best[place] = model.unseen + best[place + 1]
        found = False
        last = place
        while node:
            if model.weights[node] <= 0.0:
                value = model.weights[node] + best[last + 1]
                if not found or value >= best[place]:  # of equals the longer word
                    best[place] = value
                    ends[place] = last + 1
                found = True
            last += 1
            if last == size:
                break
            node = _child(model, node, codes[first + last])
    place = single = 0  # characters from `single` to `place` are left over
    while place < size:
        after = ends[place]
        if after - place > 1:
            if place > single:
                count = _left_over(codes, first + single, first + place, model, spans, count)
            spans[count, 0] = first + place
            spans[count, 1] = first + after
            count += 1
            single = after
        place = after
    if place > single:
        count = _left_over(codes, first + single, first + place, model, spans, count)
    return count


@compiled
def _left_over(codes: Codes, first: int, end: int, model: Model, spans: Spans, count: int) -> int:
    """Words of characters that the dictionary leaves single: one by one where they are a word of it together (it was
    not the likeliest way), else by the hidden Markov model."""
    size = end - first
    node = model.roots[codes[first] - FIRST]
    for place in range(first + 1, end):
        if not node:
            break
        node = _child(model, node, codes[place])
    if size == 1 or (node and model.weights[node] <= 0.0):
        for place in range(first, end):
            spans[count, 0] = place
            spans[count, 1] = place + 1
            count += 1
        return count
    path = _likeliest_states(codes[first:end], model)
    begin = following = 0
    for place in range(size):
        if path[place] == _B:
            begin = place
        elif path[place] == _E or path[place] == _S:
            spans[count, 0] = first + (begin if path[place] == _E else place)
            spans[count, 1] = first + place + 1
            count += 1
            following = place + 1
    if following < size:
        spans[count, 0] = first + following
        spans[count, 1] = end
        count += 1
    return count


@compiled
def _likeliest_states(codes: Codes, model: Model) -> Any:
    """The states of characters, (characters,), by Viterbi's algorithm."""
    size = len(codes)
    came = np.empty((size, 4), np.int8)
    now = np.empty(4)
    then = np.empty(4)
    for state in range(4):
        then[state] = model.start[state] + model.emit[codes[0] - FIRST, state]
    for place in range(1, size):
        code = codes[place] - FIRST
        for state in range(4):
            # the two states that can come before, in the order in which ties are broken: the later wins
            if state in (_B, _S):
                one, other = _E, _S
            else:
                one, other = _B, _M
            low = then[one] + model.step[one, state] + model.emit[code, state]
            high = then[other] + model.step[other, state] + model.emit[code, state]
            now[state] = max(low, high)
            came[place, state] = other if high >= low else one
        then[:] = now
    state = _S if then[_S] >= then[_E] else _E
    path = np.empty(size, np.int8)
    for place in range(size - 1, -1, -1):
        path[place] = state
        state = came[place, state]
    return path
