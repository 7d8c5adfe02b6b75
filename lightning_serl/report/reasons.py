"""What each reason of the ledger means, for a reader who has not seen the code."""

from __future__ import annotations

#: A sentence for every name of ``types.Reason``.
MEANINGS: dict[str, str] = {
    "empty": "The text held no problem.",
    "too_short": "Fewer words than a problem needs.",
    "too_long": "More words than a problem may have.",
    "keyword": "It asks for something that text cannot hold, such as a picture or a graph.",
    "write_a_program": "It asks for a program.",
    "punctuation": "It holds no word, or begins with a punctuation mark (published rules).",
    "non_ascii": "It begins with a character outside ASCII (published rules).",
    "duplicate": "Too similar to a problem that the pool holds (ROUGE-L).",
    "truncated_item": "The text ended before the problem did.",
    "solution_leak": "It contains its own solution.",
    "no_choices": "A multiple-choice problem without its options.",
    "too_easy": "More answers agree than the difficulty band allows.",
    "too_hard": "Fewer answers agree than the difficulty band asks for.",
    "no_spread": "All answers have the same score, so there is nothing to learn from them.",
    "no_answer": "No answer could be read, so there was no vote.",
    "over_long_prompt": "The prompt leaves no room for an answer in the model's context.",
    "stale": "Older weights wrote the answers than data.max_staleness allows.",
    "no_room": "The round was full already.",
    "no_question": "Nothing in it asks for an answer.",
    "several_questions": "It asks several things at a time.",
    "no_context": "It refers to something that it does not give.",
    "low_consensus": "The answers agree less than the reward asks for.",
    "no_view": "The reward compares two views of a problem, and there was only one.",
    "needs_passage": "It cannot be understood without the passage that it was written from.",
    "answer_in_problem": "The problem contains its answer.",
    "no_grade": "The judge wrote no grade that can be read.",
    "no_evaluation": "The reward scores solutions by evaluations of them, and there was none.",
}
