from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flss_runtime.decision import Decision, SmoothingPolicy, Status, decide, tally
from flss_runtime.errors import UsageError

Choices = npt.NDArray[np.int64]

choice_arrays = hnp.arrays(np.int64, st.tuples(st.integers(0, 4), st.integers(1, 40)), elements=st.integers(0, 6))


def policy_for(choices: Choices, min_votes: int = 0) -> SmoothingPolicy:
    return SmoothingPolicy(choices.shape[1], 2.0, min_votes)


@given(choice_arrays)
def test_tally_counts_what_a_plain_loop_counts(choices: Choices) -> None:
    top_labels, votes = tally(choices)
    for row, top, count in zip(choices.tolist(), top_labels.tolist(), votes.tolist(), strict=True):
        counts = {label: row.count(label) for label in row}
        assert sum(counts.values()) == choices.shape[1]
        assert count == max(counts.values())
        assert top == min(label for label in counts if counts[label] == count)  # the lowest index wins a tie


@given(choice_arrays, st.randoms(use_true_random=False), st.integers(0, 40))
def test_order_of_samples_does_not_matter(choices: Choices, random: Any, min_votes: int) -> None:
    order = list(range(choices.shape[1]))
    random.shuffle(order)
    policy = policy_for(choices, min(min_votes, choices.shape[1]))
    assert decide(choices, policy) == decide(choices[:, order], policy)


@given(choice_arrays)
def test_raising_min_votes_never_accepts_what_was_rejected(choices: Choices) -> None:
    accepted = np.ones(len(choices), bool)
    for min_votes in range(choices.shape[1] + 1):
        now = np.array([decision.accepted for decision in decide(choices, policy_for(choices, min_votes))], bool)
        assert not (now & ~accepted).any()
        accepted = now


@given(choice_arrays, st.integers(0, 40))
def test_decisions_are_consistent(choices: Choices, min_votes: int) -> None:
    policy = policy_for(choices, min(min_votes, choices.shape[1]))
    decisions = decide(choices, policy, range(5, 5 + len(choices)))
    assert len(decisions) == len(choices)
    for number, decision in enumerate(decisions):
        assert decision.accepted == (decision.label is not None) == (decision.votes >= policy.min_votes)
        assert decision.label in (None, decision.top_label)
        assert decision.status is (Status.ACCEPTED if decision.accepted else Status.LOW_VOTE)
        assert decision.vote_share == decision.votes / policy.num_samples
        assert decision.counter == 5 + number
        assert type(decision.votes) is int and type(decision.top_label) is int  # plain values for JSON


@given(choice_arrays)
def test_a_batch_equals_its_images(choices: Choices) -> None:
    policy = policy_for(choices, choices.shape[1] // 2)
    assert decide(choices, policy) == [decide(row[None], policy)[0] for row in choices]


def test_threshold_is_at_least() -> None:
    choices = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [2, 1, 0, 3]])
    labels = [decision.label for decision in decide(choices, SmoothingPolicy(4, 2.0, 2))]
    assert labels == [1, 0, None]  # exactly min_votes is enough; the tie goes to class 0
    assert decide(choices, SmoothingPolicy(4, 2.0, 2))[2] == Decision(None, 0, 1, 0.25, Status.LOW_VOTE)
    assert all(decision.accepted for decision in decide(choices, SmoothingPolicy(4)))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint32, np.int64])
def test_any_integer_type_and_layout_will_do(dtype: type[np.integer[Any]]) -> None:
    choices = np.asfortranarray(np.array([[3, 3, 1], [0, 2, 2]], dtype))
    top_labels, votes = tally(choices)
    assert top_labels.tolist() == [3, 2]
    assert votes.tolist() == [2, 2]
    assert top_labels.dtype == votes.dtype == np.int64


@pytest.mark.parametrize(
    "choices",
    [np.zeros(5, np.int64), np.zeros((1, 0), np.int64), np.zeros((1, 5), np.float32), np.zeros((1, 2, 3), np.int64)],
)
def test_wrong_choices_are_refused(choices: npt.NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=r"expected \(B, N\) integers"):
        decide(choices, SmoothingPolicy(5))


def test_choices_that_do_not_fit_are_refused() -> None:
    choices = np.zeros((2, 5), np.int64)
    with pytest.raises(UsageError, match="5 votes an image arrived, but the policy is for 100"):
        decide(choices, SmoothingPolicy())
    with pytest.raises(UsageError, match="3 counters for 2 images"):
        decide(choices, SmoothingPolicy(5), [1, 2, 3])
    with pytest.raises(UsageError, match="negative class index"):
        decide(choices - 1, SmoothingPolicy(5))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": -3}, "num_samples is -3"),
        ({"noise_scale": -0.1}, "noise_scale is -0.1"),
        ({"noise_scale": float("nan")}, "noise_scale is nan"),
        ({"noise_scale": float("inf")}, "noise_scale is inf"),
        ({"min_votes": 101}, "min_votes is 101"),
        ({"min_votes": -1}, "min_votes is -1"),
    ],
)
def test_impossible_policies_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as caught:
        SmoothingPolicy(**fields)
    assert caught.value.exit_code == 2
    assert "pass" in caught.value.fix
    with pytest.raises(UsageError):
        replace(SmoothingPolicy(), **fields)


def test_status_is_its_value() -> None:
    assert str(Status.LOW_VOTE) == f"{Status.LOW_VOTE}" == Status.LOW_VOTE.value == "low_vote"
    assert {status.value for status in Status} == {
        "accepted", "low_vote", "deadline", "invalid_input", "superseded", "fault",
    }  # fmt: skip
